"""A published method on a model that a host's stock call has prepared.

Formats and observers are in the model already; what a method does after that (bias correction,
rounding with error feedback, reconstruction, zero-shot training) is done on it, in place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin.strategies.compose import compose
from zaq_plugin.strategies.images import Distilled, Real
from zaq_plugin.strategies.request import Request
from zaq_plugin.strategies.stage import ImageStage, Stage, Strategy, Work
from zaq_plugin.student import student_of
from zaq_plugin.student.batches import as_calls, inputs_of
from zaq_plugin.student.modes import to_quantized_evaluation
from zaq_plugin.student.proof import require_float_function
from zaq_plugin.student.walk import MEMORY
from zaq_plugin.zero_shot.discrepancy import OutputAdapter, all_outputs
from zaq_plugin.zero_shot.images import ImageFormat

Method = str | Strategy | Sequence[str | Strategy | Stage]


@torch.enable_grad()
def quantize_prepared(
    prepared: nn.Module,
    batches: Iterable[Any] | None = None,
    method: Method = "pwlq+gptq",
    *,
    float_model: nn.Module | None = None,
    image_shape: ImageFormat | tuple[int, int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    adapter: OutputAdapter = all_outputs,
    count: int | None = None,
    batch_size: int = 32,
    memory: int = MEMORY,
    effort: float = 1.0,
    seed: int = 0,
    progress: bool = False,
    check: bool = True,
) -> list[str]:
    """Calibrate a prepared model and quantize it by a method, in place.

    Stages that learn do so under the caller's ``torch.no_grad()``, too.

    Args:
        prepared: In any host, not converted yet.
        batches: Calibration images: tensors (n, C, H, W), or tuples that begin with one. None makes
            images from ``float_model``'s BatchNorm statistics, or dead leaves where it has none.
        method: A name of `STRATEGIES` or a composition. What it says of weights' grids and
            observers is not used: the prepared model has its own.
        float_model: The model that was prepared, with its BatchNorms; needed without batches.
        image_shape: An `ImageFormat` of the images that are made, or (channels, height, width).
        mean, std: The model's input normalisation, pixels in 0..1, where ``image_shape`` does not
            say it.
        adapter: From the model's output to a list of tensors, for models with several outputs.
        count: How many images are made; None makes as many as ``Request.synthetic_count`` does.
        batch_size: Images at a time.
        memory: Bytes that the activations of all images may take; see
            `zaq_plugin.ptq.correct_bias`.
        effort: Multiplies the steps of distillation, reconstruction and training.
        seed: Fixes everything that is drawn.
        progress: Show a progress bar where something is trained.
        check: Whether the prepared model, quantizers off, is compared with ``float_model`` on the
            first batch, where both are given.

    Returns:
        What a reader should know, a line each.

    Raises:
        ValueError: If nothing is quantized, the method is unknown or puts weights together from
            several tensors, there are neither batches nor a float model, or batches hold no images.
        TypeError: If a batch is of an unknown kind.
    """
    chosen = compose(method)
    for stage in chosen.stages:
        if stage.several_tensors:
            raise ValueError(
                f"method {chosen.name!r} does not go with a prepared model: {stage.name} puts "
                "weights together from several tensors; use one of one grid per channel, such as "
                "'pwlq+gptq'"
            )
        if stage.slot == "before":
            raise ValueError(
                f"method {chosen.name!r} does not go with a prepared model: {stage.name} changes "
                "the float model, which has been prepared already; use "
                "zaq_plugin.strategies.apply, which prepares in a host itself"
            )
    student_of(prepared)  # an error if nothing is quantized
    if check and float_model is not None and batches is not None:
        batches = list(batches)
        first = as_calls(batches, "quantize", inputs_of(prepared))[0][0]
        require_float_function(prepared, float_model, first)
    images = None if batches is None else _images(prepared, batches)
    source: ImageStage = Real()
    if images is None:
        source = _image_stage(chosen)
        if float_model is None or image_shape is None:
            raise ValueError(
                "without batches images are made from the float model: pass float_model=, the "
                "model that was prepared, and image_shape=(channels, height, width); or give "
                "batches"
            )
        image_format = ImageFormat.of(image_shape, mean, std)
        mean, std = image_format.mean, image_format.std
        example = torch.zeros(2, *image_format.shape)
    else:
        example = images[:2]
    model = prepared if float_model is None else float_model
    request = Request(
        8,
        8,
        example_inputs=(example.to(_device(prepared)),),
        mean=mean,
        std=std,
        seed=seed,
        images=images,
        synthetic_count=count,
        batch_size=batch_size,
        memory=memory,
        adapter=adapter,
        effort=effort,
        progress=progress,
    )
    work = Work(request, model, model, trains=chosen.trains)
    work.source = source
    work.student = prepared
    work.calibrate()
    for stage in chosen.stages:
        if stage.slot == "after":
            stage.finish(work)
    to_quantized_evaluation(prepared)
    return work.notes


def _image_stage(chosen: Strategy) -> ImageStage:
    """Where the method's images come from."""
    stage = next((s for s in chosen.stages if isinstance(s, ImageStage)), None)
    return Distilled() if stage is None or stage.data == "real" else stage


def _images(prepared: nn.Module, batches: Iterable[Any]) -> Tensor:
    calls = as_calls(batches, "quantize", inputs_of(prepared))
    tensors = [args[0] for args, kwargs in calls if len(args) == 1 and not kwargs]
    if len(tensors) < len(calls) or any(x.dim() != 4 for x in tensors):
        raise ValueError(
            "quantize: methods work on images (n, C, H, W); for inputs of other kinds calibrate "
            "and correct_bias take batches of any shape"
        )
    shapes = {tuple(x.shape[1:]) for x in tensors}
    if len(shapes) > 1:
        raise ValueError(f"quantize: batches must have one shape of images; got {sorted(shapes)}")
    return torch.cat(tensors)


def _device(model: nn.Module) -> torch.device:
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device
