"""Where calibration images come from: noise, distillation, or the user."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from zaq_plugin.ptq.wrappers import cloned
from zaq_plugin.strategies.stage import Data, ImageStage, Work
from zaq_plugin.student.modes import frozen
from zaq_plugin.zero_shot import (
    DistillOptions,
    ImageStatistics,
    ZeroShotConfig,
    distill_images,
)
from zaq_plugin.zero_shot.distill import has_aim
from zaq_plugin.zero_shot.statistics import batch_norms


class Real(ImageStage):
    """The user's images."""

    name = "real"
    data: ClassVar[Data] = "real"
    recipe = "real"

    def make(self, work: Work) -> Tensor:
        """What the request holds.

        Raises:
            ValueError: If it holds none.
        """
        if work.request.images is None:
            raise ValueError(
                "this strategy needs real images, and there are none; pass "
                "Request(images=...), a tensor (n, C, H, W) in the model's normalisation, or use a "
                "strategy that makes its own, such as 'zaq'."
            )
        return work.request.images


class Noise(ImageStage):
    """Independent Gaussian pixels with the mean and deviation of natural images."""

    name = "noise"
    data: ClassVar[Data] = "synthetic"
    recipe = "noise"

    def make(self, work: Work) -> Tensor:
        """(n, C, H, W), between black and white."""
        request = work.request
        if request.synthetic is not None:
            return request.synthetic
        statistics = statistics_of(work)
        shape = (work.count, *request.image_shape)
        x = torch.randn(shape, generator=work.rng(1))
        return statistics.clamp(x * statistics.scale() + statistics.shift())


class Distilled(ImageStage):
    """Images distilled from BatchNorm statistics, from dead leaves (see `distill_images`).

    A model without BatchNorm is shown the dead leaves themselves.
    """

    name = "distilled"
    data: ClassVar[Data] = "synthetic"
    recipe = "leaves"

    def options(self, work: Work) -> DistillOptions:
        """How they are distilled: as by the default zero-shot preset."""
        settings, batch = ZeroShotConfig().distillation, batch_of(work)
        steps = work.request.steps(settings.steps)
        return DistillOptions(steps=steps, batch_size=batch, lr=settings.lr)

    def make(self, work: Work) -> Tensor:
        """(n, C, H, W), between black and white."""
        request = work.request
        if request.synthetic is not None:
            return request.synthetic
        options = self.options(work)
        images = distill_images(
            work.model,
            work.count,
            request.image_format,
            options=options,
            rng=work.rng(1),
            device=work.device,
        )
        if not has_aim(options, len(batch_norms(work.model))):  # a graph's are found by now
            work.notes.append(
                f"images are what they start from ({options.start}): {type(work.model).__name__} "
                "has no BatchNorm whose statistics they could be moved to"
            )
        return images


@torch.no_grad()
def classes_of(work: Work) -> int | None:
    """How many classes the float model's logits (n, classes) have; None if it answers otherwise."""
    with frozen(work.model):
        answer = work.model(*cloned(work.request.example_inputs))
    return answer.shape[1] if isinstance(answer, Tensor) and answer.dim() == 2 else None


def batch_of(work: Work) -> int:
    """Images that are distilled together: as many as the request runs at a time, up to 128."""
    return min(128, work.count, work.request.batch_size)


def statistics_of(work: Work) -> ImageStatistics:
    """The model's input normalisation."""
    return work.request.image_format.statistics
