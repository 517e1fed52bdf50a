"""GPTQ against its definition: after each rounding the rest is the least-squares optimum."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from zaq_plugin.ptq.error_feedback import output_error, round_with_feedback


def problem(
    seed: int, groups: int = 2, channels: int = 3, n: int = 6, count: int = 8
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, levels and second moments of correlated inputs, all float64."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(groups, channels, n, generator=generator, dtype=torch.float64)
    levels = torch.randn(groups, channels, count, generator=generator, dtype=torch.float64)
    mix = torch.randn(groups, n, n, generator=generator, dtype=torch.float64)
    x = torch.randn(groups, 200, n, generator=generator, dtype=torch.float64) @ mix
    return rows, levels.sort(2).values, x.mT @ x / 200


def by_definition(w: np.ndarray, levels: np.ndarray, h: np.ndarray) -> np.ndarray:
    """One channel, column after column, the open weights solved anew each time."""
    order = np.argsort(-np.diag(h), kind="stable")
    rounded = np.zeros_like(w)
    for position, j in enumerate(order):
        fixed, free = order[:position], order[position:]
        # Minimise (m - w) H (m - w)^T over the free ones: (m - w)_F = -H_FF^-1 H_FX (m - w)_X.
        open_ = w[free].copy()
        if len(fixed):
            shift = h[np.ix_(free, fixed)] @ (rounded[fixed] - w[fixed])
            open_ -= np.linalg.solve(h[np.ix_(free, free)], shift)
        rounded[j] = levels[np.argmin(np.abs(levels - open_[0]))]
    return rounded


@pytest.mark.parametrize("n", [1, 6, 150])
def test_every_column_is_rounded_where_the_optimum_of_the_rest_has_it(n: int) -> None:
    rows, levels, moment = problem(n, n=n)
    rounded = round_with_feedback(rows, levels, moment, damping=0.05, sweeps=0)
    for g, c in itertools.product(range(2), range(3)):
        h = moment[g].numpy()
        damped = h + 0.05 * np.diag(h).mean() * np.eye(n)
        expected = by_definition(rows[g, c].numpy(), levels[g, c].numpy(), damped)
        np.testing.assert_array_equal(rounded[g, c].numpy(), expected)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(s, marks=pytest.mark.slow) for s in (2, 3))])
def test_descent_ends_where_no_single_weight_can_do_better(seed: int) -> None:
    rows, levels, moment = problem(seed, groups=1, channels=2)
    damped = moment + 0.01 * moment[0].diagonal().mean() * torch.eye(6, dtype=torch.float64)
    first = round_with_feedback(rows, levels, moment, sweeps=0)
    rounded = round_with_feedback(rows, levels, moment, sweeps=100)
    before, after = output_error(rows, first, damped), output_error(rows, rounded, damped)
    assert bool((after <= before + 1e-12).all())
    for c, j, level in itertools.product(range(2), range(6), range(8)):
        other = rounded.clone()
        other[0, c, j] = levels[0, c, level]
        assert float(output_error(rows, other, damped)[0, c]) >= float(after[0, c]) - 1e-9
    best = min(
        (row @ damped[0].numpy() * row).sum()
        for row in (
            np.array(choice) - rows[0, 0].numpy()
            for choice in itertools.product(levels[0, 0].numpy(), repeat=6)
        )
    )
    nearest = (rows[0, :, :, None] - levels[0, :, None, :]).abs().argmin(2)
    plain = float(output_error(rows, levels[0].gather(1, nearest)[None], damped)[0, 0])
    assert best - 1e-9 <= float(after[0, 0]) <= plain + 1e-9


def test_uncorrelated_inputs_leave_the_nearest_levels() -> None:
    rows, levels, _ = problem(0)
    moment = torch.diag_embed(torch.rand(2, 6, dtype=torch.float64) + 0.1)
    rounded = round_with_feedback(rows, levels, moment)
    nearest = (rows.unsqueeze(3) - levels.unsqueeze(2)).abs().argmin(3)
    assert torch.equal(rounded, levels.gather(2, nearest))


def test_inputs_that_are_always_zero() -> None:
    rows, levels, moment = problem(0)
    moment[:, 2], moment[:, :, 2] = 0.0, 0.0
    moment[1] = 0.0
    rounded = round_with_feedback(rows, levels, moment)
    nearest = (rows.unsqueeze(3) - levels.unsqueeze(2)).abs().argmin(3)
    assert torch.equal(rounded[1], levels.gather(2, nearest)[1])
    assert bool(rounded.isfinite().all())


def test_moments_that_are_not_finite() -> None:
    rows, levels, moment = problem(0)
    moment[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"second moments of the inputs are not finite"):
        round_with_feedback(rows, levels, moment)
    with pytest.raises(ValueError, match=r"damping must be above 0, .* got 0"):
        round_with_feedback(rows, levels, torch.eye(6).expand(2, 6, 6), damping=0.0)
