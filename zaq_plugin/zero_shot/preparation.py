"""What comes before training: images, ranges, biases, alternatives, reconstruction, judgements."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin.ptq.calibrate import set_ranges
from zaq_plugin.student import student_of
from zaq_plugin.student.fake_quantizers import set_switches
from zaq_plugin.student.modes import to_quantized_evaluation
from zaq_plugin.zero_shot.alternatives import Alternative, states_of, weigh
from zaq_plugin.zero_shot.config import ZeroShotConfig
from zaq_plugin.zero_shot.judge import Judge
from zaq_plugin.zero_shot.loader import ZeroShotLoader
from zaq_plugin.zero_shot.reconstruction import reconstruct
from zaq_plugin.zero_shot.result import FinetuneResult
from zaq_plugin.zero_shot.sources import copies


@dataclass
class Preparation:
    """The stages before training, in order.

    Attributes:
        student: Changed in place.
        loader: Its source of images, with the teacher.
        correct: Bias correction, or None.
        alternatives: See `zero_shot_finetune`.
        show: Takes a stage, a step, how many there are, and values to show.
        result: Takes blocks and seconds.
        pool: The images to learn from, once there are some.
    """

    student: nn.Module
    loader: ZeroShotLoader
    correct: Callable[[nn.Module, Sequence[Tensor]], object] | None
    alternatives: Mapping[str, Alternative]
    show: Callable[[str, int, int, dict[str, float]], None]
    result: FinetuneResult
    pool: Tensor = field(init=False)

    @property
    def config(self) -> ZeroShotConfig:
        """The run's settings."""
        return self.loader.config

    def go(self, images: Tensor | None) -> Judge:
        """All stages; returns the judge, who has seen every state.

        Args:
            images: (N, C, H, W) in place of distilled ones.
        """
        held_out = self._timed("images", lambda: self._make_images(images))
        if self.config.calibration.renew:
            self._timed("calibration", self._calibrate)
        set_switches(self.student, observe=False, quantize=True)
        if self.correct is not None:
            self._timed("bias correction", self._correct)
        judge = judge_of(
            self.loader, copies(held_out, self.config.judging.copies, self.loader.shared_rng)
        )
        tried = self._timed("alternatives", self._alternatives) if self.alternatives else {}
        judge.look(self.student, "start")
        if self.config.reconstruction.enabled:
            # Learned roundings start from the weights themselves, whose biases are the float ones.
            student_of(self.student).restore_biases()
            self._timed("reconstruction", self._reconstruct)
            judge.look(self.student, "reconstructed")
        weigh(self.student, judge, tried)
        return judge

    def _make_images(self, images: Tensor | None) -> Tensor:
        """Pool and validation images; the two never meet."""
        config, loader = self.config, self.loader

        def report(stage: str, step: int, steps: int, loss: float) -> None:
            self.show(stage, step, steps, {"loss": loss})

        if images is not None:
            images = images.to(loader.device, loader.dtype)
            count = min(config.judging.images, max(2, len(images) // 3))
            loader.prepare(images[:-count], report)
            self.pool = images[:-count]
            return images[-count:]
        if config.uses_distilled:
            total = config.distillation.images + config.judging.images
            distilled = loader.distill(total, report).to(loader.dtype)
            loader.prepare(distilled[: config.distillation.images], report)
            self.pool = distilled[: config.distillation.images]
            return distilled[config.distillation.images :]
        loader.prepare(None, report)
        held_out = self._generate(config.judging.images)
        self.pool = self._generate(max(config.calibration.images, 2))
        return held_out

    def _generate(self, count: int) -> Tensor:
        assert self.loader.adversary is not None
        batches = -(-count // self.config.batch_size)
        parts = [self.loader.adversary.sample() for _ in range(batches)]
        return torch.cat(parts)[:count].to(self.loader.dtype)

    @torch.no_grad()
    def _calibrate(self) -> None:
        images = self.pool[: self.config.calibration.images].split(self.config.batch_size)
        set_ranges(student_of(self.student), [((batch,), {}) for batch in images])
        to_quantized_evaluation(self.student)

    def _batches(self) -> list[Tensor]:
        """Calibration images, in batches of one size, as hosts want them."""
        batches = self.pool[: self.config.calibration.images].split(self.config.batch_size)
        return [b for b in batches if len(b) == len(batches[0])]

    def _correct(self) -> None:
        assert self.correct is not None
        self.correct(self.student, self._batches())
        to_quantized_evaluation(self.student)

    def _alternatives(self) -> dict[str, dict[str, Tensor]]:
        return states_of(self.student, self.alternatives, self._batches())

    def _reconstruct(self) -> None:
        config = self.config
        self.result.blocks = reconstruct(
            self.student,
            self.loader.teacher,
            copies(self.pool, config.reconstruction.copies, self.loader.shared_rng),
            config.reconstruction.options(),
            rng=self.loader.shared_rng,
            progress=lambda name, n, total, error: self.show(
                "reconstruct", n, total, {"error": error}
            ),
        )

    def _timed(self, stage: str, action: Callable[[], Any]) -> Any:
        return timed(self.result.seconds, stage, action)


def judge_of(loader: ZeroShotLoader, images: Tensor) -> Judge:
    """A judge by the loader's teacher and loss.

    Args:
        loader: Of the run.
        images: (N, C, H, W) that nothing is trained on.
    """
    return Judge(loader.teacher, images, loader.adapter, loader.config.losses.output)


def timed(seconds: dict[str, float], stage: str, action: Callable[[], Any]) -> Any:
    """What an action returns; its wall time is added to the stage's."""
    start = time.perf_counter()
    value = action()
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
    return value
