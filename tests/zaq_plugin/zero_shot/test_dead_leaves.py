"""Dead leaves: standardised, seeded, and with the spectrum of photographs."""

import pytest
import torch
from torch import Tensor

from zaq_plugin.zero_shot.dead_leaves import dead_leaves


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
