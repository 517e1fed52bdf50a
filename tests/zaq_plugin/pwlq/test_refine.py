"""Channels that follow no bell, or are few weights: against brute force and uniform grids."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import nearest_error
from safetensors.torch import load_file, save_file

from zaq_plugin.pwlq import (
    PWLQSpec,
    UniformSpec,
    fake_quantize,
    load_quantized,
    quantize,
    save_quantized,
    search,
    solve_edges,
)

KINDS = {
    "one sign": lambda z: 1 + 0.05 * z,
    "negative": lambda z: -2 - 0.1 * z,
    "two bumps": lambda z: np.sign(z) * (1 + 0.05 * np.roll(z, 1, -1)),
    "lognormal": np.exp,
    "bell": lambda z: z,
}


def rows_of(kind, channels, length, seed=0):
    z = np.random.default_rng(seed).standard_normal((channels, length))
    return torch.from_numpy(KINDS[kind](z)).float()


def squared_error(w, spec):
    return (quantize(w, spec).dequantize().double() - w).square().sum(1)


def brute_force(x, bits, times=1, snapped=True):
    """Least squared error of magnitudes x over 80 x 80 clips and breakpoints, in numpy."""
    clip = x.max() * np.linspace(0.3, 1, 80)[:, None, None]
    ratio = np.linspace(0.02, 0.98, 80)[None, :, None]
    center, tail = times * (2 ** (bits - 1) - 1), times * 2 ** (bits - 1)
    inner = clip * ratio * np.arange(center + 1) / center
    outer = clip * (ratio + (1 - ratio) * np.arange(1, tail + 1) / tail)
    levels = np.concatenate([inner, outer], -1).reshape(-1, center + tail + 1)
    if snapped:
        step = np.repeat(clip.ravel(), 80)[:, None] / 127
        levels = np.round(levels / step) * step
    return min((np.abs(x[:, None] - book).min(1) ** 2).sum() for book in levels)


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize(("kind", "length"), [("bell", 9), ("one sign", 9), ("two bumps", 60)])
def test_search_finds_what_brute_force_finds(kind, length, bits):
    w = rows_of(kind, 3, length, seed=bits)
    ours = squared_error(w, PWLQSpec(bits, symmetry="symmetric", overflow="allowed")).numpy()
    best = np.array([brute_force(np.abs(row), bits) for row in w.double().numpy()])
    assert (ours <= 1.5 * best).all()
    assert ours.sum() <= 1.05 * best.sum()


@pytest.mark.parametrize("kind", ["one sign", "negative", "lognormal"])
def test_one_sign_takes_the_codes_of_both(kind):
    w = rows_of(kind, 4, 60)
    spec = PWLQSpec(3, grid="float")
    q = quantize(w, spec)
    assert q.codebook.shape[1] == spec.num_levels == 15
    for row, book, value in zip(w, q.codebook, q.dequantize(), strict=True):
        assert len(book.unique()) == 15  # none idles
        assert bool((book * row.sign()[0] >= 0).all())
        distance = (value - row).abs().double().numpy()
        best = nearest_error(row.double().numpy(), book.double().numpy())
        np.testing.assert_allclose(distance, best, atol=1e-6 * float(book.abs().max()))
    best = [brute_force(np.abs(r), 3, times=2, snapped=False) for r in w.double().numpy()]
    assert (squared_error(w, spec).numpy() <= 1.05 * np.array(best)).all()


@pytest.mark.parametrize("overlapping", [False, True])
@pytest.mark.parametrize("grid", ["int8", "float"])
def test_a_sign_is_its_mirror_image(grid, overlapping):
    w = rows_of("lognormal", 5, 70)
    spec = PWLQSpec(4, grid=grid, overlapping=overlapping)
    value = quantize(w, spec).dequantize()
    assert torch.equal(quantize(-w, spec).dequantize(), -value)
    assert torch.equal(fake_quantize(w, spec), value)
    finer = (value - w).square().sum(1)
    one_side = PWLQSpec(4, grid=grid, overlapping=overlapping, symmetry="symmetric")
    assert (finer < 0.7 * (quantize(w, one_side).dequantize() - w).square().sum(1)).all()


def test_given_edges_of_an_empty_side_give_the_other_one_twice_the_levels():
    edges = torch.tensor([[[0.3, 1.2]], [[0.0, 0.0]]])
    spec = PWLQSpec(3, grid="float", policy="given")
    book = quantize(torch.tensor([[0.1, 1.2, -0.3]]), spec, edges=edges).codebook[0]
    expected = np.concatenate([0.3 * np.arange(7) / 6, 0.3 + 0.9 * np.arange(1, 9) / 8])
    np.testing.assert_allclose(book.double().numpy(), expected, rtol=1e-6)
    mirrored = quantize(torch.tensor([[0.1, -1.2]]), spec, edges=edges.flip(0)).codebook[0]
    assert torch.equal(mirrored, -book.flip(0) + 0.0)


@pytest.mark.parametrize("law", ["standard_normal", "laplace"])
def test_bells_stay_where_they_were(law, monkeypatch):
    draw = getattr(np.random.default_rng(3), law)
    w = torch.from_numpy(draw(size=(24, 576))).float()
    for spec in (PWLQSpec(4), PWLQSpec(3, symmetry="symmetric"), PWLQSpec(3, breakpoints=2)):
        best = solve_edges(w, spec)
        with monkeypatch.context() as patched:
            patched.setattr(search, "refined", lambda rows, edges, odd, spec: edges)
            assert torch.equal(best, solve_edges(w, spec))


@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    length=st.sampled_from([1, 9, 25, 130]),
    seed=st.integers(0, 10**6),
    bits=st.integers(2, 5),
    symmetry=st.sampled_from(["symmetric", "asymmetric"]),
    breakpoints=st.integers(1, 2),
)
def test_refining_never_costs(kind, length, seed, bits, symmetry, breakpoints):
    w = rows_of(kind, 3, length, seed)
    spec = PWLQSpec(bits, breakpoints, symmetry=symmetry, overflow="allowed")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(search, "refined", lambda rows, edges, odd, spec: edges)
        before = squared_error(w, spec)
    after = squared_error(w, spec)
    same = (before - after).abs() <= 1e-12 * before
    assert ((after <= before * (1 - search.LEAST_GAIN)) | same).all()


EDGE_CASES = {
    "constant": [0.37] * 40,
    "negative constant": [-3e-5] * 40,
    "zero": [0.0] * 40,
    "outlier": [*np.linspace(-1e-3, 1e-3, 39), 1.0],
    "one weight": [0.0] * 39 + [-5.0],
    "signs": [1.0, -1.0] * 20,
    "nearly constant": np.linspace(1, 1.0001, 40),
    "ramp": np.linspace(0, 1, 40),
    "subnormal": np.linspace(-1e-40, 1e-40, 40),
    "small": np.linspace(-1e-28, 1e-28, 40),
    "large": np.linspace(-1e30, 1e30, 40),
}
POLICIES = ("gaussian", "laplacian", "gaussian-exact", "laplacian-exact", "search", "joint")


@pytest.mark.parametrize("grid", ["int8", "float"])
@pytest.mark.parametrize("symmetry", ["symmetric", "asymmetric"])
def test_edge_cases_have_finite_edges_and_levels(symmetry, grid):
    w = torch.from_numpy(np.array([list(row) for row in EDGE_CASES.values()])).float()
    for policy, bits in itertools.product(POLICIES, (2, 4)):
        spec = PWLQSpec(bits, symmetry=symmetry, grid=grid, policy=policy)
        edges = solve_edges(w, spec)
        value = quantize(w, spec).dequantize()
        assert torch.isfinite(edges).all()
        assert torch.isfinite(value).all()
        assert torch.equal(value, fake_quantize(w, spec))


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("grid", ["int8", "float"])
@pytest.mark.parametrize("length", [9, 40])
def test_edge_cases_lose_no_more_than_on_uniform_grids_of_equal_stored_bits(bits, grid, length):
    """Symmetric ones, and on channels of one sign asymmetric ones.

    An asymmetric uniform grid has one level more, 2^b to PWLQ's 2^b - 1.
    """
    w = torch.from_numpy(np.array([list(row)[-length:] for row in EDGE_CASES.values()])).float()
    w = torch.cat([w, *(rows_of(kind, 2, length, seed=bits) for kind in KINDS)])
    spec = PWLQSpec(bits, grid=grid)
    ours = squared_error(w, spec)
    one_sign = (w >= 0).all(1) | (w <= 0).all(1)
    # Levels of the int8 grid are off by half of its step: nothing that a uniform one need be.
    rounding = w.double().square().sum(1) * (1e-13 if grid == "float" else 1e-5)
    rounding = rounding + length * 1e-60  # subnormal values have no squares in float32
    for symmetry, clip in itertools.product(("symmetric", "asymmetric"), ("minmax", "mse")):
        uniform = squared_error(w, UniformSpec(spec.stored_bits, symmetry, clip))
        steps = 1 if symmetry == "symmetric" else (spec.num_levels / (spec.num_levels - 1)) ** 2
        worse = ours > 1.02 * steps * uniform + rounding
        assert not (worse & (one_sign | (symmetry == "symmetric"))).any()


def test_nan_is_refused_by_every_policy():
    w = torch.tensor([[1.0, float("nan")]])
    for policy in POLICIES:
        with pytest.raises(ValueError, match=r"1 NaN or infinite value\(s\)"):
            solve_edges(w, PWLQSpec(policy=policy))


@pytest.mark.parametrize("grid", ["int8", "float"])
def test_files_of_before_mean_what_they_meant(grid, tmp_path):
    """Their codes counted the levels of an empty side, too."""
    w = torch.cat([rows_of("one sign", 1, 30), rows_of("negative", 1, 30), rows_of("bell", 1, 30)])
    edges = solve_edges(w, PWLQSpec(3, grid=grid, policy="laplacian"))
    hardly = edges.clamp(min=1e-36)  # no side is empty: all keep their codes
    spec = PWLQSpec(3, grid=grid, policy="given", overflow="allowed")
    was = quantize(w, spec, edges=hardly)
    save_quantized(tmp_path / "now", {"w": was})
    arrays = load_file(tmp_path / "now")
    arrays["w.edges"] = edges
    entry = {
        "spec": json.loads(spec.to_json()),
        "generated": True,
        "shape": [3, 30],
        "axis": 0,
        "dtype": "float32",
        "sqnr_db": was.sqnr_db,
        "center_fraction": was.center_fraction,
    }
    save_file(arrays, tmp_path / "before", {"zaq_plugin.pwlq/2": json.dumps({"w": entry})})
    read = load_quantized(tmp_path / "before")["w"]
    torch.testing.assert_close(read.dequantize(), was.dequantize(), rtol=1e-6, atol=1e-30)
    save_quantized(tmp_path / "again", {"w": read})
    again = load_quantized(tmp_path / "again")["w"]
    assert torch.equal(again.dequantize(), read.dequantize())


@pytest.mark.parametrize("shape", [(6, 5, 1, 1), (6, 1, 3, 3), (6, 4, 3, 3)])
@pytest.mark.parametrize("axis", [0, 1, None])
def test_channels_last_is_the_same_bit_for_bit(shape, axis, tmp_path):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    last = w.to(memory_format=torch.channels_last)
    for spec in (PWLQSpec(4), PWLQSpec(3, grid="float"), UniformSpec(5, "asymmetric", "mse")):
        edges = solve_edges(w, spec, axis)
        assert torch.equal(solve_edges(last, spec, axis), edges)
        a, b = quantize(w, spec, axis), quantize(last, spec, axis)
        for name in ("codes", "codebook", "scale"):
            assert torch.equal(getattr(a, name), getattr(b, name))
        assert torch.equal(a.pack(), b.pack())
        assert torch.equal(a.dequantize(), b.dequantize())
        assert a.sqnr_db == pytest.approx(b.sqnr_db, rel=1e-6)
        out = fake_quantize(last, spec, axis)
        assert torch.equal(out, fake_quantize(w, spec, axis))
        assert out.stride() == last.stride()
        files = [tmp_path / "contiguous", tmp_path / "last"]
        for path, tensor in zip(files, (a, b), strict=True):
            save_quantized(path, {"w": tensor})
        read = [load_quantized(path)["w"].dequantize() for path in files]
        assert torch.equal(*read)
        gradients = []
        for x in (w, last):
            leaf, point = x.detach().requires_grad_(), edges.clone().requires_grad_()
            fake_quantize(leaf, spec, axis, edges=point).square().sum().backward()
            gradients.append((leaf.grad, point.grad))
        assert torch.equal(gradients[0][0], gradients[1][0])
        torch.testing.assert_close(gradients[0][1], gradients[1][1], rtol=1e-5, atol=1e-6)
