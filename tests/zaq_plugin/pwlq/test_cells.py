"""The nearest level of a value and the nearest value of a level, against a search of all levels."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zaq_plugin.pwlq import PWLQSpec, QuantSpec, UniformSpec, quantize
from zaq_plugin.pwlq.cells import levels_of, nearest_in_cell, nearest_level
from zaq_plugin.pwlq.functional import complete_edges
from zaq_plugin.pwlq.ranges import solve_edges

SPECS = [
    PWLQSpec(3),
    PWLQSpec(2, symmetry="symmetric"),
    PWLQSpec(3, overlapping=True),
    UniformSpec(4, "asymmetric", "mse"),
]


@st.composite
def problems(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and ascending levels of a few channels."""
    channels, count = draw(st.integers(1, 3)), draw(st.integers(2, 9))
    seed = draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    gaps = torch.rand(channels, count, generator=generator, dtype=torch.float64) + 0.01
    levels = gaps.cumsum(1) - count / 4
    values = 3 * torch.randn(channels, 20, generator=generator, dtype=torch.float64)
    return values, levels


@given(problems())
def test_no_level_is_nearer(problem: tuple[torch.Tensor, torch.Tensor]) -> None:
    values, levels = problem
    nearest = nearest_level(values, levels)
    every = np.abs(values.numpy()[:, :, None] - levels.numpy()[:, None, :])
    np.testing.assert_allclose((values - nearest).abs().numpy(), every.min(2), rtol=0, atol=1e-15)
    assert bool((nearest.unsqueeze(2) == levels.unsqueeze(1)).any(2).all())


@given(problems(), st.integers(0, 2**16))
def test_the_value_in_a_cell_is_rounded_to_its_level_and_is_the_closest_such(
    problem: tuple[torch.Tensor, torch.Tensor], seed: int
) -> None:
    values, levels = problem
    generator = torch.Generator().manual_seed(seed)
    target = levels.gather(1, torch.randint(levels.shape[1], values.shape, generator=generator))
    inside = nearest_in_cell(values, target, levels)
    assert torch.equal(nearest_level(inside, levels), target)
    # Values on their own level already stay as they are, unless they lie at the cell's rim.
    own = nearest_level(values, levels)
    nearer = nearest_in_cell(values, own, levels)
    step = (levels[:, 1:] - levels[:, :-1]).amax(1, keepdim=True)
    beyond = (values < levels[:, :1]) | (values > levels[:, -1:])
    assert bool(((nearer - values).abs() <= 0.011 * step)[~beyond].all())
    # Anything closer to the value lies outside the cell or at its rim.
    closer = values + (inside - values) * (1 - 0.05)
    moved = (inside - values).abs() > step
    outer = (target == levels[:, :1]) & (values < target) | (target == levels[:, -1:]) & (
        values > target
    )
    assert bool((nearest_level(closer, levels) != target)[moved & ~outer].all())


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.label)
def test_levels_are_those_that_quantize_uses(spec: QuantSpec) -> None:
    weight = torch.randn(5, 300, generator=torch.Generator().manual_seed(1))
    edges = complete_edges(weight, solve_edges(weight, spec), spec, 0)
    levels = levels_of(edges, spec)
    quantized = quantize(weight, spec, 0, edges=edges).dequantize()
    assert bool((levels.diff(dim=1) >= 0).all())
    for row, grid in zip(quantized, levels, strict=True):
        assert set(row.tolist()) <= set(grid.tolist())
    if not getattr(spec, "overlapping", False):  # an overlapping grid goes by region, not distance
        nearest = nearest_level(weight, levels)
        assert torch.allclose((nearest - weight).abs(), (quantized - weight).abs(), atol=1e-6)
