"""ZAQ: zero-shot adversarial fine-tuning, as in its paper and as we do it.

Liu, Zhang, Wang, Zero-shot Adversarial Quantization (CVPR 2021, arXiv 2103.15263). ``zaq`` is the
default preset of `zaq_plugin.zero_shot` without its training: distilled images, block
reconstruction, rounding with error feedback where a judge finds it better than that, and the best
state. Training after reconstruction was rejected by the judge in nearly every run that was looked
at, and lost on real images where it was not (benchmarks/results/zero_shot.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from zaq_plugin.ptq.compensate import compensate_rounding
from zaq_plugin.strategies.images import Distilled, Noise
from zaq_plugin.strategies.parts import LeastSquaresWeights, MinMaxActivations
from zaq_plugin.strategies.reconstruction import note_uncovered, refuse_compound
from zaq_plugin.strategies.stage import Stage, Strategy, Work
from zaq_plugin.zero_shot import ZeroShotConfig, zero_shot_finetune

_PARTS = {"alternatives": "error feedback"}
"""Stages of a run by what they are here, where they are called otherwise."""


@dataclass(frozen=True)
class ZeroShot(Stage):
    """`zero_shot_finetune` by one of its presets.

    Attributes:
        preset: Of `ZeroShotConfig`.
        changes: Settings on top of it, as pairs.
        own_images: Whether it makes its images itself (an adversarial generator's).
        feedback: Whether the judge may prefer rounding with error feedback (``gptq``) to
            reconstruction, which it does where images or iterations are few.
        iterations: A block's, where weights and activations have 4 bits and more; None for the
            preset's, which narrower ones always take (benchmarks/results/speed.md).
    """

    slot = "after"
    name = "zero-shot"

    preset: str = "default"
    changes: tuple[tuple[str, Any], ...] = ()
    own_images: bool = False
    feedback: bool = False
    iterations: int | None = None

    def config(self, work: Work) -> ZeroShotConfig:
        """The preset at the request's seed and effort.

        Where another stage has moved the weights already, grids and ranges stay as they are: they
        belong to the levels that were chosen.
        """
        request = work.request
        config = ZeroShotConfig.preset(self.preset, seed=request.seed, **dict(self.changes))
        warm_up = config.generator.warmup_steps
        iterations = self.iterations_at(request.weight_bits, request.activation_bits)
        return config.with_changes(
            steps=request.steps(config.steps) if config.steps else 0,
            reconstruct_iterations=request.steps(iterations),
            warmup_steps=request.steps(warm_up) if warm_up else 0,
            batch_size=min(config.batch_size, request.batch_size),
            reconstruct_batch_size=min(config.reconstruction.batch_size, request.batch_size),
            calibration_images=work.count,
            recalibrate=config.calibration.renew and not work.moved,
        )

    def iterations_at(self, weight_bits: float, activation_bits: int | None) -> int:
        """A block's iterations at these stored bits of weights and bits of activations."""
        if self.iterations is not None and min(weight_bits, activation_bits or 8) >= 4:
            return self.iterations
        config = ZeroShotConfig.preset(self.preset, **dict(self.changes))
        return config.reconstruction.iterations

    def finish(self, work: Work) -> None:
        """Fine-tune the student in place; the parts of the run are told apart in its times."""
        refuse_compound(work, self.name)
        request, teacher = work.request, work.teacher
        config = self.config(work)
        if config.reconstruction.enabled:
            note_uncovered(work)

        def feedback(student: nn.Module, batches: Sequence[Tensor]) -> None:
            compensate_rounding(student, batches, teacher, seed=request.seed, memory=request.memory)

        result = zero_shot_finetune(
            work.student,
            config,
            image_shape=request.image_format,
            float_model=work.model,
            teacher=teacher,
            adapter=request.adapter,
            images=None if self.own_images else work.images,
            alternatives={"gptq": feedback} if self.feedback and not work.moved else None,
            progress=request.progress,
        )
        for stage, seconds in result.seconds.items():
            part = f"{self.name} ({_PARTS.get(stage, stage)})"
            work.stages[part] = work.stages.get(part, 0.0) + seconds
        work.trained = self.name
        if result.best is not None:
            work.notes.append(
                f"best state by the judge: {result.best.label}, agreement "
                f"{result.start.agreement:.3f} to {result.best.agreement:.3f} on synthetic images"
            )


ZAQ_PAPER = Strategy(
    name="zaq-paper",
    title="zero-shot adversarial quantization, as published",
    paper="Liu et al., CVPR 2021",
    data="synthetic",
    trains=True,
    stages=(
        Noise(),
        LeastSquaresWeights(),
        MinMaxActivations(),
        ZeroShot("paper", own_images=True),
    ),
)

ZAQ = Strategy(
    name="zaq",
    title="zero-shot, our default: PWLQ, block reconstruction or error feedback, by a judge",
    paper="Liu et al., CVPR 2021; Fang et al., ECCV 2020",
    data="synthetic",
    trains=True,
    stages=(
        Distilled(),
        LeastSquaresWeights(),
        MinMaxActivations(),
        ZeroShot(changes=(("steps", 0),), feedback=True, iterations=120),
    ),
    levels="pwlq",
)
