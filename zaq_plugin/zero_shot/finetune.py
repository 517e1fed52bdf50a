"""`zero_shot_finetune`: calibration, reconstruction and training without data, with every guard."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin.progress import RunProgress
from zaq_plugin.ptq.calibrate import set_ranges
from zaq_plugin.ptq.wrappers import unwrapped
from zaq_plugin.reconstruction.reconstruct import reconstruct
from zaq_plugin.student import student_of
from zaq_plugin.student.fake_quantizers import set_switches
from zaq_plugin.student.modes import (
    State,
    check_graph_mode,
    freeze_batch_norm,
    to_evaluation,
    to_quantized_evaluation,
)
from zaq_plugin.zero_shot.config import ZeroShotConfig
from zaq_plugin.zero_shot.discrepancy import OutputAdapter, all_outputs
from zaq_plugin.zero_shot.feedback import Feedback, Pair
from zaq_plugin.zero_shot.images import ImageFormat
from zaq_plugin.zero_shot.judge import Alternative, Judge, states_of, weigh
from zaq_plugin.zero_shot.loader import ZeroShotLoader
from zaq_plugin.zero_shot.sources import Report, SyntheticImages, copies
from zaq_plugin.zero_shot.training import FinetuneResult, Training, load_checkpoint

logger = logging.getLogger(__name__)
Correct = Callable[[nn.Module, Sequence[Tensor]], object]


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
    correct: Correct | None = None,
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
    check_graph_mode(student)
    modes = {m: m.training for m in student.modules()}
    pair = Pair(
        student,
        ImageFormat.of(image_shape, mean, std),
        teacher=teacher,
        float_model=None if float_model is None else unwrapped(float_model),
        adapter=adapter,
    )
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    config = config or ZeroShotConfig()
    run = _Run(config, pair, correct, alternatives or {}, folder, RunProgress(progress), on_step)
    try:
        with run.progress:
            return run.whole(images)
    finally:
        run.close()
        for module in student.modules():
            if module in modes:
                module.training = modes[module]


class _Run:
    """One run: its stages in order, timed; see `zero_shot_finetune`."""

    def __init__(
        self,
        config: ZeroShotConfig,
        pair: Pair,
        correct: Correct | None,
        alternatives: Mapping[str, Alternative],
        folder: Path | None,
        progress: RunProgress,
        on_step: Callable[[int], None] | None,
    ) -> None:
        self.config, self.pair, self.student = config, pair, pair.student
        self.images, self.feedback = SyntheticImages(config, pair), Feedback(config, pair)
        self.correct, self.alternatives = correct, alternatives
        self.folder, self.progress, self.on_step = folder, progress, on_step
        self.result = FinetuneResult()
        self.training: Training | None = None
        # Work on a graph's or model's own mode, with BatchNorm frozen: dropout would be noise.
        to_evaluation(self.student)
        freeze_batch_norm(self.student)

    def whole(self, images: Tensor | None) -> FinetuneResult:
        """All stages, or those that a checkpoint leaves; the student holds the best state then."""
        saved = None
        if self.folder is not None:
            saved = load_checkpoint(self.folder, self.config.to_json(), self.pair.device)
        judge = self._start(images) if saved is None else self._resume(saved)
        if self.config.steps:
            self._timed("training", lambda: self._train(judge, saved))
        return self._hand_over(judge)

    def _start(self, images: Tensor | None) -> Judge:
        """What comes before training; the judge has seen every state then."""
        pool, held_out = self._timed("images", lambda: self._make_images(images))
        batches = pool[: self.config.calibration.images].split(self.config.batch_size)
        if self.config.calibration.renew:
            self._timed("calibration", lambda: self._set_ranges(batches))
        set_switches(self.student, observe=False, quantize=True)
        batches = [b for b in batches if len(b) == len(batches[0])]  # as hosts want them
        if self.correct is not None:
            self._timed("bias correction", lambda: self._correct(batches))
        judge = self._judge_on(copies(held_out, self.config.judging.copies, self.images.shared_rng))
        tried: dict[str, State] = {}
        if self.alternatives:
            tried = self._timed(
                "alternatives", lambda: states_of(self.student, self.alternatives, batches)
            )
        judge.look(self.student, "start")
        if self.config.reconstruction.enabled:
            # Learned roundings start from the weights themselves, whose biases are the float ones.
            student_of(self.student).restore_biases()
            self._timed("reconstruction", lambda: self._reconstruct(pool))
            judge.look(self.student, "reconstructed")
        weigh(self.student, judge, tried)
        return judge

    # ---- the stages, in order ------------------------------------------------------------------

    def _make_images(self, images: Tensor | None) -> tuple[Tensor, Tensor]:
        """Images to learn from, and others to judge by; the two never meet."""
        config, made = self.config, self.images

        def report(stage: str, step: int, steps: int, loss: float) -> None:
            self.progress.show(stage, step, steps, {"loss": loss})

        if images is None and not config.uses_distilled:
            self._prepare(None, report)
            held_out = made.generated(config.judging.images)
            return made.generated(max(config.calibration.images, 2)), held_out
        if images is None:
            total = config.distillation.images + config.judging.images
            images = made.distill(total, report).to(made.dtype)
            count = config.judging.images
        else:
            images = images.to(made.device, made.dtype)
            count = min(config.judging.images, max(2, len(images) // 3))
        self._prepare(images[:-count], report)
        return images[:-count], images[-count:]

    def _prepare(self, pool: Tensor | None, report: Report) -> None:
        """The source of batches, and the points that student and teacher are compared at."""
        self.images.prepare(pool, report)
        self.feedback.place_taps()

    @torch.no_grad()
    def _set_ranges(self, batches: Sequence[Tensor]) -> None:
        set_ranges(student_of(self.student), [((batch,), {}) for batch in batches])
        to_quantized_evaluation(self.student)

    def _correct(self, batches: Sequence[Tensor]) -> None:
        assert self.correct is not None
        self.correct(self.student, batches)
        to_quantized_evaluation(self.student)

    def _judge_on(self, images: Tensor) -> Judge:
        """A judge by the run's teacher and loss, on images that nothing is trained on."""
        pair = self.pair
        return Judge(pair.teacher, images, pair.adapter, self.config.losses.output)

    def _reconstruct(self, pool: Tensor) -> None:
        options, rng = self.config.reconstruction, self.images.shared_rng
        self.result.blocks = reconstruct(
            self.student,
            self.pair.teacher,
            copies(pool, options.copies, rng),
            options.options(),
            rng=rng,
            progress=lambda name, n, total, error: self.progress.show(
                "reconstruct", n, total, {"error": error}
            ),
        )

    def _train(self, judge: Judge, saved: dict[str, Any] | None) -> None:
        loader = ZeroShotLoader.of(self.config, self.images, self.feedback)
        if saved is not None:
            loader.load_state_dict(saved["loader"])
        self.training = Training(
            loader, self.feedback, judge, self.result, self.progress, self.folder, self.on_step
        )
        if saved is None:
            self.training.begin()
        else:
            self.training.resume(saved)
        self.training.run()

    def _hand_over(self, judge: Judge) -> FinetuneResult:
        result = self.result
        result.best = judge.restore_best(self.student)
        result.verdicts = list(judge.history)
        if self.feedback.taps is not None:
            result.layer_weights = self.feedback.taps.shares
        if self.images.adversary is not None:
            result.restarts = list(self.images.adversary.restarts)
        result.examples = self.images.examples(64)
        if len(result.verdicts) > 1 and not result.improved:
            logger.warning(
                "nothing better than the untrained state was found; it is what the student holds."
            )
        return result

    # ---- around them ---------------------------------------------------------------------------

    def _resume(self, saved: dict[str, Any]) -> Judge:
        """The state that a checkpoint holds, in place of the stages before training."""
        set_switches(self.student, observe=False, quantize=True)
        images = saved["judge"]["images"]
        if self.correct is not None:  # which adds to the student what the state below fills
            self.student.load_state_dict(saved["base"], strict=False)
            self.correct(self.student, [images[:2]])
        if self.alternatives:  # these, too
            states_of(self.student, self.alternatives, [images[:2]])
        self.student.load_state_dict(saved["base"])
        set_switches(self.student, observe=False, quantize=True)
        judge = self._judge_on(images)
        judge.load_state_dict(saved["judge"])
        self.result.curve = list(saved["curve"])
        self.result.seconds = dict(saved["seconds"])
        logger.info("resumed at step %d", saved["loader"]["step"])
        return judge

    def _timed(self, stage: str, action: Callable[[], Any]) -> Any:
        """What an action returns; its wall time is added to the stage's."""
        start = time.perf_counter()
        value = action()
        seconds = self.result.seconds
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
        return value

    def close(self) -> None:
        """Take hooks and stand-ins out of the models."""
        if self.training is not None:
            self.training.close()
        self.feedback.close()
