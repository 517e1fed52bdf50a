"""`zero_shot_finetune`: calibration, reconstruction and training without data, with every guard."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from zaq_plugin.ptq.wrappers import unwrapped
from zaq_plugin.zero_shot.alternatives import Alternative
from zaq_plugin.zero_shot.config import ZeroShotConfig
from zaq_plugin.zero_shot.outputs import OutputAdapter, all_outputs
from zaq_plugin.zero_shot.result import FinetuneResult
from zaq_plugin.zero_shot.statistics import ImageFormat
from zaq_plugin.zero_shot.trainer import Run


def zero_shot_finetune(
    student: nn.Module,
    config: ZeroShotConfig | None = None,
    *,
    image_shape: ImageFormat | tuple[int, int, int],
    float_model: nn.Module | None = None,
    teacher: nn.Module | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    adapter: OutputAdapter = all_outputs,
    images: Tensor | None = None,
    correct: Callable[[nn.Module, Sequence[Tensor]], object] | None = None,
    alternatives: Mapping[str, Alternative] | None = None,
    checkpoint_dir: str | Path | None = None,
    progress: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> FinetuneResult:
    """Fine-tune a prepared student in place, without data (ZAQ and its successors).

    Lifecycle: distil images and warm the generator up; calibrate activation ranges and freeze them;
    correct biases; judge the untrained state; reconstruct block by block; weigh the alternatives;
    train; hand back the best state by the judge's synthetic images, the untrained one included.

    Args:
        student: Prepared for quantization-aware training, in any host; changed in place.
        config: Settings; `ZeroShotConfig.preset` has three.
        image_shape: An `ImageFormat`, or (channels, height, width).
        float_model: The float model before its BatchNorms were folded, if they were: its
            statistics guide the synthetic images.
        teacher: P; by default the student's twin, whose weights are the student's: give one if
            the student's have been moved away from the float model's.
        mean, std: The model's input normalisation, pixels in 0..1, where ``image_shape`` does not
            say it.
        adapter: From the model's output to a list of tensors, for models with several outputs.
        images: (N, C, H, W) images in place of distilled ones; real ones make it fine-tuning with
            data, the ceiling.
        correct: Bias correction of the student's host, `zaq_plugin.ptq.correct_bias` or
            ``correct_bias`` of an integration; called with the student and batches of images once
            ranges are set. Networks of depthwise layers need it, unless they are reconstructed,
            which starts from the float biases.
        alternatives: By name, other ways to choose the calibrated student's weights, called as
            ``correct``: `zaq_plugin.ptq.compensate_rounding`, say. One that the judge finds better
            than the reconstructed state (or the start, if that is better) is what training starts
            from.
        checkpoint_dir: Where to leave checkpoints; a run that finds one there resumes it.
        progress: Show a progress bar.
        on_step: Called after every student step.

    Raises:
        ValueError: if nothing is quantized, or a checkpoint belongs to other settings.
        TrainingDiverged: if the loss or its gradient becomes NaN or infinite.
    """
    float_model = None if float_model is None else unwrapped(float_model)
    modes = {m: m.training for m in student.modules()}
    run = Run(
        student,
        config or ZeroShotConfig(),
        correct,
        alternatives,
        checkpoint_dir,
        progress,
        on_step,
        {
            "image_shape": ImageFormat.of(image_shape, mean, std),
            "float_model": float_model,
            "teacher": teacher,
            "adapter": adapter,
        },
    )
    try:
        with run.progress:
            return run.go(images)
    finally:
        run.close()
        for module in student.modules():
            if module in modes:
                module.training = modes[module]
