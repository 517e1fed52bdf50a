"""What images a model takes; dead leaves: seeded, with the spectrum of photographs."""

import pytest
import torch
from torch import Tensor, nn

from zaq_plugin import UniformSpec
from zaq_plugin.ptq import simulate
from zaq_plugin.zero_shot import (
    DistillOptions,
    ImageFormat,
    ImageStatistics,
    ZeroShotLoader,
    distill_images,
)
from zaq_plugin.zero_shot.images import dead_leaves


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slope_of_spectrum(images: Tensor) -> float:
    """Least-squares slope of log power over log frequency, 0 for white noise."""
    side = images.shape[-1]
    power = torch.fft.fft2(images.double()).abs().square().mean((0, 1))
    frequency = torch.fft.fftfreq(side, dtype=torch.float64)
    radius = (frequency[:, None].square() + frequency[None].square()).sqrt()
    chosen = (radius > 1.5 / side) & (radius < 0.4)
    x, y = radius[chosen].log(), power[chosen].log()
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / x.square().sum())


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (3, 24, 40), (4, 17, 5)])
def test_channels_are_standardised(shape: tuple[int, int, int]) -> None:
    images = dead_leaves(16, shape, seeded())
    assert images.shape == (16, *shape)
    values = images.double().transpose(0, 1).reshape(shape[0], -1)
    torch.testing.assert_close(values.mean(1), torch.zeros(shape[0]).double(), atol=1e-5, rtol=0)
    deviation = values.std(1, correction=0)
    torch.testing.assert_close(deviation, torch.ones(shape[0]).double(), atol=1e-4, rtol=0)


def test_a_seed_fixes_them_and_another_changes_them() -> None:
    first = dead_leaves(4, (3, 16, 16), seeded(1))
    assert torch.equal(first, dead_leaves(4, (3, 16, 16), seeded(1)))
    assert not torch.equal(first, dead_leaves(4, (3, 16, 16), seeded(2)))


def test_power_falls_with_frequency_as_in_photographs() -> None:
    """Natural images have slopes around -2 (Field 1987); white noise has 0."""
    slope = slope_of_spectrum(dead_leaves(64, (3, 64, 64), seeded()))
    noise = slope_of_spectrum(torch.randn(64, 3, 64, 64, generator=seeded()))
    assert abs(noise) < 0.1
    assert -2.6 < slope < -1.4


def test_channels_go_together_as_colours_do() -> None:
    images = dead_leaves(64, (3, 32, 32), seeded())
    red, green = images[:, 0].flatten(), images[:, 1].flatten()
    assert 0.6 < float((red * green).mean()) < 0.95


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
