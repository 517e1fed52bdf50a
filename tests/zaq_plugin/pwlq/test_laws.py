"""Laws of the format that hold for any input (Hypothesis)."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zaq_plugin.pwlq import PWLQSpec, UniformSpec, fake_quantize, quantize, solve_edges

POLICIES = st.sampled_from(
    ["gaussian", "laplacian", "gaussian-exact", "laplacian-exact", "search", "joint"]
)
ROWS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 40)),
    elements=st.floats(-1e4, 1e4, width=32).map(lambda v: v if abs(v) > 1e-20 else 0.0),
)


@st.composite
def specs(draw, symmetries=("symmetric", "asymmetric", "one-sided"), grids=("float", "int8")):
    grid = draw(st.sampled_from(grids))
    return PWLQSpec(
        bits=draw(st.integers(2, 8 if grid == "float" else 6)),
        breakpoints=draw(st.integers(1, 3)),
        symmetry=draw(st.sampled_from(symmetries)),
        policy=draw(POLICIES),
        grid=grid,
        shared_endpoints=draw(st.booleans()),
    )


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(ROWS, specs())
def test_count_of_levels(rows, spec):
    q = quantize(torch.from_numpy(rows), spec)
    b, n = spec.bits, spec.breakpoints
    most = (n + 1) * 2**b
    if spec.symmetry == "one-sided":
        exact = most - n if spec.shared_endpoints else most
    else:
        exact = most - 1 - 2 * n if spec.shared_endpoints else most - 1
    assert spec.num_levels == q.codebook.shape[1] == exact <= most
    assert int(q.codes.max()) < exact <= 2**spec.stored_bits
    assert (q.codebook.diff(dim=1) >= 0).all()


@settings(deadline=None, max_examples=30)
@given(ROWS, specs())
def test_idempotent_and_monotone(rows, spec):
    w = torch.from_numpy(rows)
    edges = solve_edges(w, spec)
    once = fake_quantize(w, spec, edges=edges)
    assert torch.equal(fake_quantize(once, spec, edges=edges), once)
    order = w.argsort(dim=1)
    assert (torch.gather(once, 1, order).diff(dim=1) >= 0).all()


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(ROWS, specs(symmetries=("symmetric",)))
def test_odd_symmetric(rows, spec):
    w = torch.from_numpy(rows)
    edges = solve_edges(w, spec)
    assert torch.equal(fake_quantize(-w, spec, edges=edges), -fake_quantize(w, spec, edges=edges))


@settings(deadline=None, max_examples=25)
@given(ROWS, specs(grids=("int8",)))
def test_int8_levels_are_within_half_a_step_of_the_float_grid(rows, spec):
    w = torch.from_numpy(rows)
    edges = solve_edges(w, spec)
    snapped = quantize(w, spec, edges=edges)
    ideal = quantize(w, dataclasses.replace(spec, grid="float"), edges=edges)
    step = snapped.scale.double().unsqueeze(1)
    difference = snapped.codebook.double() * step - ideal.codebook.double()
    assert (difference.abs() <= 0.5 * step * (1 + 1e-4)).all()
    assert snapped.codebook.dtype == torch.int8


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10**6),
    st.integers(2, 8),
    st.booleans(),
    st.sampled_from(["normal", "laplace", "student", "uniform"]),
)
def test_error_is_never_above_the_uniform_grid_of_the_same_mac_bits(seed, bits, shared, law):
    generator = np.random.default_rng(seed)
    draw = {
        "normal": generator.standard_normal,
        "laplace": lambda size: generator.laplace(size=size),
        "student": lambda size: generator.standard_t(4, size=size),
        "uniform": lambda size: generator.uniform(-1, 1, size=size),
    }[law]
    w = torch.from_numpy(draw((4, 400))).float()
    spec = PWLQSpec(
        bits=bits, grid="float", symmetry="symmetric", policy="joint", shared_endpoints=shared
    )
    ours = (quantize(w, spec).dequantize() - w).double().square().sum(1)
    for clip in ("minmax", "mse"):
        uniform = quantize(w, UniformSpec(bits, clip=clip)).dequantize()
        assert (ours <= (uniform - w).double().square().sum(1)).all()


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(ROWS, specs(), st.integers(0, 2))
def test_any_memory_layout_gives_the_same_result(rows, spec, axis):
    w = torch.from_numpy(rows)
    w = torch.stack([w, w * 0.5, -w], dim=1)
    reference = quantize(w, spec, axis=axis)
    for other in (
        w.transpose(0, 2).contiguous().transpose(0, 2),
        torch.stack([w, w], -1)[..., 0],
    ):
        q = quantize(other, spec, axis=axis)
        assert torch.equal(q.codes, reference.codes)
        assert torch.equal(q.codebook, reference.codebook)
    moved = quantize(w.movedim(axis, 0).contiguous(), spec, axis=0)
    assert torch.equal(moved.codes, reference.codes.movedim(axis, 0))


def test_channels_last_keeps_its_format_and_values():
    w = torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    last = w.to(memory_format=torch.channels_last)
    out = fake_quantize(last, PWLQSpec())
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(out, fake_quantize(w, PWLQSpec()))


def test_chunk_and_thread_count_do_not_matter(monkeypatch):
    from zaq_plugin.pwlq import kernels, search, theory

    w = torch.randn(40, 300, generator=torch.Generator().manual_seed(0))
    specs_ = [PWLQSpec(), PWLQSpec(policy="gaussian", grid="float"), UniformSpec(4, clip="mse")]
    before = [quantize(w, spec) for spec in specs_]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        monkeypatch.setattr(kernels, "BLOCK", 777)
        monkeypatch.setattr(theory, "BLOCK", 777)
        monkeypatch.setattr(search, "BLOCK_ELEMENTS", 30000)
        for spec, reference in zip(specs_, before, strict=True):
            q = quantize(w, spec)
            assert torch.equal(q.codes, reference.codes)
            assert torch.equal(q.scale, reference.scale)
            assert torch.equal(q.codebook, reference.codebook)
    finally:
        torch.set_num_threads(threads)
