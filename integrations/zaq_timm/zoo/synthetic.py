"""Images that nobody took: for ranges and biases, and, other ones, for judging without data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zaq_plugin.zero_shot import DistillOptions, ImageFormat, distill_images
from zaq_plugin.zero_shot.distill import low_pass
from zaq_plugin.zero_shot.statistics import batch_norms
from zaq_timm.zoo.models import Inputs
from zaq_timm.zoo.settings import Settings

Report = Callable[[str, int, int], None]

DISTILLED = "images distilled from BatchNorm statistics"
NOISE = "smooth noise with the mean and deviation of natural images"
SMOOTHNESS = (0.5, 1.0, 2.0, 4.0)
"""Standard deviations, in pixels, of the blurs that smooth noise goes through."""


@dataclass(frozen=True)
class Synthetic:
    """Synthetic images of one kind; the two sets never meet.

    Attributes:
        calibration: (n, C, H, W), may set ranges, biases and train.
        test: (m, C, H, W), only measures.
        kind: what they are, in words.
    """

    calibration: Tensor
    test: Tensor
    kind: str


def make_images(
    model: nn.Module, inputs: Inputs, settings: Settings, calibration: int, report: Report
) -> Synthetic:
    """Synthetic images for a float model, in its normalisation.

    Args:
        model: with its BatchNorms in place.
        calibration: how many that calibrate; ``settings.test_images`` more are made for judging.
        report: told stage, step and steps.
    """
    total = calibration + settings.test_images
    choice = settings.calibration
    if choice == "auto":
        choice = "distilled" if batch_norms(model) else "noise"
    rng = torch.Generator().manual_seed(settings.seed)
    if choice == "noise":
        images = smooth_noise(total, inputs, rng)
    else:
        options = DistillOptions(
            steps=settings.distill_steps, batch_size=max(2, min(settings.batch, total))
        )
        images = distill_images(
            model,
            total,
            inputs,
            options=options,
            rng=rng,
            progress=lambda step, steps, _: report("distilling images", step, steps),
        )
    # Every distilled batch has statistics of its own: both sets get of each.
    order = torch.randperm(total, generator=rng)
    images = images[order]
    kind = NOISE if choice == "noise" else DISTILLED
    return Synthetic(images[:calibration], images[calibration:], kind)


def smooth_noise(count: int, images: ImageFormat, rng: torch.Generator) -> Tensor:
    """Gaussian noise of several smoothnesses with natural images' mean and deviation.

    Returns:
        (count, C, H, W), between black and white.
    """
    shape, statistics, parts = images.shape, images.statistics, []
    for index in range(count):
        noise = torch.randn(1, *shape, generator=rng)
        blur = SMOOTHNESS[index % len(SMOOTHNESS)]
        if min(shape[1:]) > 3 * blur:
            noise = low_pass(noise, blur)
        noise = (noise - noise.mean()) / noise.std().clamp(min=1e-6)
        parts.append(statistics.clamp(noise * statistics.scale() + statistics.shift()))
    return torch.cat(parts)
