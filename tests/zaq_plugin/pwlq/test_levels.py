"""Levels and decisions against brute force over an independent list of levels."""

import itertools

import numpy as np
import pytest
import torch
from reference import (
    PWLQ_CASES,
    channel_levels,
    nearest_error,
    published_overlapping,
    published_pwlq,
)

from zaq_plugin.pwlq import PWLQSpec, UniformSpec, fake_quantize, quantize, solve_edges

CHANNELS, LENGTH = 5, 257


def weights(symmetry, seed=0):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(CHANNELS, LENGTH, generator=generator)
    w = w * torch.tensor([1e-4, 0.03, 1.0, 7.0, 900.0]).unsqueeze(1)
    return w.abs() if symmetry == "one-sided" else w


def some_edges(w, spec):
    """Edges that no policy chose: the clip at 0.8 max, breakpoints spread below."""
    clip = 0.8 * w.abs().amax(1)
    ratios = torch.linspace(0.2, 0.55, spec.breakpoints)
    points = torch.cat([clip.unsqueeze(1) * ratios, clip.unsqueeze(1)], 1)
    return torch.stack([points * factor for factor in (1.0, 0.7)[: spec.sides]])


@pytest.mark.parametrize("case", PWLQ_CASES, ids=lambda c: "-".join(map(str, c.values())))
def test_float_grid_is_the_nearest_of_the_listed_levels(case):
    spec = PWLQSpec(**case, grid="float", policy="given")
    w = weights(spec.symmetry)
    edges = some_edges(w, spec)
    q = quantize(w, spec, edges=edges)
    values = q.dequantize().double().numpy()
    for channel in range(CHANNELS):
        levels = channel_levels(
            edges[:, channel].double().numpy(), spec.bits, spec.symmetry, spec.shared_endpoints
        )
        assert len(levels) == spec.num_levels
        book = q.codebook[channel].double().numpy()
        np.testing.assert_allclose(book, levels, rtol=1e-6, atol=1e-6 * levels[-1])
        r = w[channel].double().numpy()
        best = nearest_error(r, levels)
        np.testing.assert_allclose(np.abs(values[channel] - r), best, atol=2e-6 * levels[-1])


@pytest.mark.parametrize("case", PWLQ_CASES, ids=lambda c: "-".join(map(str, c.values())))
def test_int8_grid_is_the_nearest_of_the_snapped_levels(case):
    spec = PWLQSpec(**case, policy="given", overflow="allowed")
    w = weights(spec.symmetry)
    edges = some_edges(w, spec)
    q = quantize(w, spec, edges=edges)
    values = q.dequantize().double().numpy()
    for channel in range(CHANNELS):
        own = edges[:, channel].double().numpy()
        step = float(q.scale[channel])
        assert step == pytest.approx(own.max() / 127, rel=1e-6)
        ideal = channel_levels(own, spec.bits, spec.symmetry, spec.shared_endpoints) / step
        # At an exact tie float32 may round to the other neighbour: compare the distance.
        book = q.codebook[channel].double().numpy()
        assert len(book) == len(ideal)
        assert np.abs(book - ideal).max() <= 0.5 + 1e-4
        assert np.abs(book).max() == 127
        r = w[channel].double().numpy()
        best = nearest_error(r, book * step)
        np.testing.assert_allclose(np.abs(values[channel] - r), best, atol=1e-5 * step)


@pytest.mark.parametrize("bits", range(2, 9))
def test_levels_follow_the_published_formula(bits):
    spec = PWLQSpec(
        bits=bits, symmetry="symmetric", grid="float", policy="given", shared_endpoints=True
    )
    w = weights("symmetric", seed=bits)
    edges = some_edges(w, spec)
    ours = quantize(w, spec, edges=edges).dequantize().double().numpy()
    for channel in range(CHANNELS):
        p, m = edges[0, channel].double().numpy()
        expected = published_pwlq(w[channel].double().numpy(), bits, m, p)
        off = np.abs(ours[channel] - expected) > 1e-5 * m
        assert off.mean() <= 1e-3  # a value on a decision threshold may fall either way in float32


@pytest.mark.parametrize("grid", ["float", "int8"])
@pytest.mark.parametrize("bits", [3, 4, 5, 6])
def test_overlapping_follows_the_published_formula(bits, grid):
    spec = PWLQSpec(bits=bits, symmetry="symmetric", grid=grid, policy="given", overlapping=True)
    w = weights("symmetric", seed=bits)
    edges = some_edges(w, spec)
    q = quantize(w, spec, edges=edges)
    ours = q.dequantize().double().numpy()
    for channel in range(CHANNELS):
        p, m = edges[0, channel].double().numpy()
        r = w[channel].double().numpy()
        expected = published_overlapping(r, bits, m, p)
        if grid == "float":
            assert (np.abs(ours[channel] - expected) > 1e-5 * m).mean() <= 1e-3
        else:  # levels and the border of the regions move by half a step at most
            allowed = np.abs(expected - r) + float(q.scale[channel]) * 1.001
            assert (np.abs(ours[channel] - r) <= allowed).all()


@pytest.mark.parametrize(
    ("bits", "symmetry", "clip"),
    list(itertools.product((2, 4, 8), ("symmetric", "asymmetric", "one-sided"), ("minmax", "mse"))),
)
def test_uniform_grid_is_what_torch_computes(bits, symmetry, clip):
    spec = UniformSpec(bits, symmetry, clip)
    w = weights(symmetry)
    q = quantize(w, spec)
    integers = q.codebook.int()
    low, high = int(integers.min()), int(integers.max())
    if symmetry == "asymmetric":
        zero_points = -integers[:, 0]
        shifted = torch.fake_quantize_per_channel_affine(w, q.scale, zero_points, 0, 0, 2**bits - 1)
    else:
        zero_points = torch.zeros(CHANNELS, dtype=torch.int32)
        shifted = torch.fake_quantize_per_channel_affine(w, q.scale, zero_points, 0, low, high)
    difference = (q.dequantize() - shifted).abs() / q.scale.unsqueeze(1)
    # Ties: torch rounds half to even, we away from zero; both are nearest.
    tie = ((w / q.scale.unsqueeze(1)) % 1 - 0.5).abs() < 1e-4
    assert (difference[~tie] < 1e-3).all()


def test_mean_squared_error_clip_beats_every_clip_on_a_grid():
    w = weights("symmetric")
    spec = UniformSpec(4, "symmetric", "mse")
    ours = (quantize(w, spec).dequantize() - w).double().square().sum(1)
    biggest = w.abs().amax(1)
    for ratio in np.linspace(0.3, 1.0, 71):
        scale = biggest * ratio / 7
        other = (torch.round(w / scale[:, None]).clamp(-7, 7) * scale[:, None] - w).double()
        assert (ours <= other.square().sum(1) * 1.01).all()


def test_edges_are_reported_in_weight_units():
    w = torch.tensor([[-2.0, 0.0, 1.0, 4.0]])
    edges = solve_edges(w, PWLQSpec(policy="gaussian"))
    assert edges.shape == (2, 1, 2)
    assert edges[0, 0, 1] == 4.0
    assert edges[1, 0, 1] == 2.0


def test_all_zero_and_constant_channels():
    w = torch.tensor([[0.0] * 8, [3.0] * 8, [-0.5] * 8, [0.0, 1, 2, 3, 4, 5, 6, 7]])
    for policy in ("gaussian", "laplacian-exact", "search", "joint"):
        for grid in ("float", "int8"):
            for symmetry in ("symmetric", "asymmetric"):
                spec = PWLQSpec(policy=policy, grid=grid, symmetry=symmetry)
                values = quantize(w, spec).dequantize()
                assert torch.equal(values[0], w[0])
                torch.testing.assert_close(values[1:3], w[1:3], rtol=1e-6, atol=0)
                assert torch.equal(values, fake_quantize(w, spec))
