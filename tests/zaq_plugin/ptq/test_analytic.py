"""ACIQ's arithmetic against numerical integration, exhaustive search and the published clips."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from zaq_plugin.ptq.analytic import (
    allocate_bits,
    analytic_range,
    clipping_error,
    fitted,
    optimal_clip,
)

DENSITIES = {"gaussian": stats.norm().pdf, "laplace": stats.laplace().pdf}


@pytest.mark.parametrize("density", list(DENSITIES))
@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("alpha", [0.7, 2.0, 4.5])
def test_the_error_is_what_is_cut_off_and_a_twelfth_of_the_step(
    density: str, one_sided: bool, alpha: float
) -> None:
    bits = 3
    cut, _ = integrate.quad(lambda x: (x - alpha) ** 2 * DENSITIES[density](x), alpha, 60)
    width = alpha if one_sided else 2 * alpha
    # Behind a ReLU half of the values is zero and exact; the error is per value that is not.
    expected = 2 * cut + (width / 2**bits) ** 2 / 12
    error = clipping_error(alpha, bits, density, one_sided)  # type: ignore[arg-type]
    assert error == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(
    ("density", "published"),
    [("laplace", [2.83, 3.89, 5.03]), ("gaussian", [1.71, 2.15, 2.55])],
)
def test_clips_are_those_of_the_paper(density: str, published: list[float]) -> None:
    clips = [optimal_clip(bits, density) for bits in (2, 3, 4)]  # type: ignore[arg-type]
    assert clips == pytest.approx(published, abs=0.012)


@pytest.mark.parametrize("density", list(DENSITIES))
@pytest.mark.parametrize("one_sided", [False, True])
def test_no_other_clip_is_better(density: str, one_sided: bool) -> None:
    for bits in range(2, 9):
        best = optimal_clip(bits, density, one_sided)  # type: ignore[arg-type]
        grid = np.linspace(0.2, 20, 4000)
        errors = [clipping_error(a, bits, density, one_sided) for a in grid]  # type: ignore[arg-type]
        assert best == pytest.approx(grid[int(np.argmin(errors))], abs=0.01)


@pytest.mark.parametrize("density", list(DENSITIES))
def test_a_sample_is_recognised_behind_a_relu_as_well(density: str) -> None:
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=60000) if density == "gaussian" else rng.laplace(size=60000)
    x = 3 * torch.from_numpy(drawn)
    for one_sided in (False, True):
        name, scale = fitted(x.relu() if one_sided else x, one_sided)
        assert name == density
        assert scale == pytest.approx(3, rel=0.03)
    low, high = analytic_range(x.float(), 4)
    assert float(high) == pytest.approx(3 * optimal_clip(4, density), rel=0.05)  # type: ignore[arg-type]
    assert float(low) == pytest.approx(-float(high), rel=0.05)
    low, high = analytic_range(x.relu().float(), 4)
    expected = 3 * optimal_clip(4, density, True)  # type: ignore[arg-type]
    assert float(low) == 0
    assert float(high) == pytest.approx(expected, rel=0.05)


def test_ranges_never_pass_what_was_seen() -> None:
    low, high = analytic_range(torch.tensor([-1.0, 0.0, 1.0, 1.0]), 8)
    assert (float(low), float(high)) == (-1.0, 1.0)
    assert [float(v) for v in analytic_range(torch.zeros(4), 4)] == [0.0, 0.0]


def test_bits_follow_the_two_thirds_power_of_the_range() -> None:
    ranges = torch.tensor([0.5, 1.0, 8.0, 2.0, 3.0, 0.0], dtype=torch.float64)
    power = ranges.numpy() ** (2 / 3)
    ideal = np.log2(np.maximum(power / power.sum() * len(power) * 2**4, 1e-9))
    bits = allocate_bits(ranges, 4)
    rounded = np.clip(np.round(ideal), 2, 8)
    assert bits.double().mean() <= 4
    assert np.abs(bits.numpy() - rounded).sum() <= max(0, rounded.sum() - 24)
    assert allocate_bits(torch.ones(7), 3).tolist() == [3] * 7
    assert allocate_bits(torch.zeros(3), 5).tolist() == [5] * 3


@pytest.mark.parametrize("seed", range(5))
def test_the_mean_width_is_never_passed(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ranges = torch.randn(33, generator=generator).exp()
    for bits in (2, 3, 4, 6, 8):
        widths = allocate_bits(ranges, bits)
        assert float(widths.double().mean()) <= bits
        assert int(widths.min()) >= 2
        order = ranges.argsort()
        assert bool((widths[order].diff() >= -1).all()), "wider ranges get more bits"


def test_math_is_defined_for_every_width() -> None:
    assert all(math.isfinite(optimal_clip(b, "gaussian", True)) for b in range(1, 17))
