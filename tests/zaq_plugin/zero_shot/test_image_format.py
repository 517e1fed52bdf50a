"""Shape and normalisation as one object, and what users may say in its place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zaq_plugin import UniformSpec
from zaq_plugin.ptq import simulate
from zaq_plugin.zero_shot import (
    DistillOptions,
    ImageFormat,
    ImageStatistics,
    ZeroShotLoader,
    distill_images,
)

GREY = ImageFormat((1, 8, 8), (0.5,), (0.25,))


def test_its_statistics_are_those_of_its_channels() -> None:
    assert GREY.statistics == ImageStatistics((0.5,), (0.25,))
    assert ImageFormat((2, 8, 8), (0.5,), (0.25, 0.5)).statistics.mean == (0.5, 0.5)
    assert ImageFormat((3, 8, 8)).statistics == ImageStatistics()
    assert ImageFormat([3, 4, 5], [0.1] * 3).shape == (3, 4, 5)  # type: ignore[arg-type]
    assert hash(GREY) == hash(ImageFormat((1, 8, 8), (0.5,), (0.25,)))


def test_a_shape_with_mean_and_std_means_the_same() -> None:
    assert ImageFormat.of((1, 8, 8), [0.5], [0.25]) == GREY
    assert ImageFormat.of(GREY) is GREY
    with pytest.raises(ValueError, match="mean and std are said twice: an ImageFormat has its own"):
        ImageFormat.of(GREY, mean=[0.5])


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape must be \(channels, height, width\), each at lea"):
        ImageFormat((8, 8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mean has 3 values for images of 1 channels"):
        ImageFormat((1, 8, 8), (0.1, 0.2, 0.3))
    with pytest.raises(ValueError, match="std must be positive"):
        ImageFormat((1, 8, 8), std=(0.0,))


def test_distillation_and_loader_take_either() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
    options = DistillOptions(steps=1, batch_size=2)
    one = distill_images(model, 2, GREY, options=options)
    statistics = GREY.statistics
    two = distill_images(model, 2, (1, 8, 8), options=options, statistics=statistics)
    assert torch.equal(one, two)
    assert not torch.equal(one, distill_images(model, 2, (1, 8, 8), options=options))
    student = simulate(model.eval(), UniformSpec(4, "symmetric", "mse"))
    assert ZeroShotLoader(student, GREY).images == GREY
    assert ZeroShotLoader(student, (1, 8, 8), mean=[0.5], std=[0.25]).images == GREY
