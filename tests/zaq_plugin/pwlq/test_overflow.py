"""No two products overflow 16 bits: the oracle adds them as ``vpmaddubsw`` does."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from overflow import overflows, walks

from zaq_plugin.fake_quantize import PWLQPerChannelFakeQuantize
from zaq_plugin.pwlq import (
    PWLQSpec,
    UniformSpec,
    fake_quantize,
    load_quantized,
    quantize,
    save_quantized,
    solve_edges,
    spec_from_json,
)
from zaq_plugin.pwlq.cells import fitting_edges, levels_of
from zaq_plugin.pwlq.functional import complete_edges
from zaq_plugin.pwlq.levels import tops_of

SPECS = [
    PWLQSpec(2),
    PWLQSpec(4),
    PWLQSpec(4, symmetry="symmetric", policy="gaussian"),
    PWLQSpec(3, breakpoints=3),
    PWLQSpec(6),
    UniformSpec(8),
    UniformSpec(7, "asymmetric"),
]
SHAPES = [((12, 7), 0), ((7, 12), 1), ((12, 5, 3), 0), ((8, 6, 3, 3), 0), ((8, 1, 3, 3), 0),
          ((6, 8, 2, 2), 1), ((6, 8, 3, 3), None), ((9, 4), None)]  # fmt: skip


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(*shape, generator=generator)
    return w * torch.exp(torch.randn(shape[0], *[1] * (len(shape) - 1), generator=generator))


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.label)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_no_two_products_overflow(spec, shape, axis):
    w = normal(*shape)
    q = quantize(w, spec, axis)
    assert not overflows(q.integer_weight(), axis)
    assert torch.equal(fake_quantize(w, spec, axis), q.dequantize())
    if shape == (8, 6, 3, 3) and spec != SPECS[-1]:  # and they did
        free = quantize(w, replace(spec, overflow="allowed"), axis)
        assert overflows(free.integer_weight(), axis)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.label)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_weights_that_move_are_looked_at_again(spec, shape, axis):
    """With the grid that another weight chose; what fits stays, so that twice equals once."""
    w = normal(*shape)
    edges = complete_edges(w, solve_edges(w, spec, axis), spec, axis)
    moved = 1.5 * w + 0.3 * w.std() * normal(*shape, seed=1).sign()
    q = quantize(moved, spec, axis, edges=edges)
    assert not overflows(q.integer_weight(), axis)
    value = fake_quantize(moved, spec, axis, edges=edges)
    assert torch.equal(value, q.dequantize())
    assert torch.equal(fake_quantize(value, spec, axis, edges=edges), value)
    again = quantize(value, spec, axis, edges=edges)
    assert torch.equal(again.dequantize(), value)
    nearest = nearest_levels(moved, levels_of(edges, spec), axis)
    assert bool((value.abs() <= nearest.abs() * (1 + 1e-6)).all())  # never larger
    assert bool((value * nearest >= 0).all())


def nearest_levels(w, levels, axis):
    """By distance to every level."""
    rows = w.reshape(1, -1) if axis is None else w.movedim(axis, 0).flatten(1)
    places = (rows.unsqueeze(2) - levels.unsqueeze(1)).abs().argmin(2)
    values = levels.gather(1, places)
    if axis is None:
        return values.reshape(w.shape)
    return values.reshape(w.movedim(axis, 0).shape).movedim(0, axis)


def test_the_grid_is_the_one_that_changes_weights_least():
    """Every top is tried, with each weight on the level of its code."""
    w, spec = normal(16, 30), PWLQSpec(4)
    plain = solve_edges(w, spec)
    tops = tops_of(complete_edges(w, plain, spec, 0), spec)
    free = quantize(w, replace(spec, overflow="allowed"), edges=plain)
    book = free.codebook.double().numpy()
    clip = plain[..., -1].amax(0).double().numpy()
    wide = 0
    for c in range(16):
        codes = free.codes[c].numpy().astype(int)
        ideal = _ideal_levels(plain[:, c].double().numpy(), spec)
        row, errors = w[c].double().numpy(), {}
        before = book[c][codes]
        worst = _worst(before)
        if worst <= 128:
            assert tops[c] == 127
            continue
        wide += 1
        finest = min(127, int(np.ceil(127 * 129 / worst)))
        for top in range(finest, int(np.ceil(0.65 * finest)) - 1, -1):
            levels = np.rint(ideal / (clip[c] / top))
            if _worst(levels[codes]) <= 128:
                change = levels[codes] * clip[c] / top - row
                errors[top] = (change**2).sum() + change.sum() ** 2
        assert errors[int(tops[c])] <= min(errors.values()) * (1 + 1e-6)
    assert wide >= 8


def _ideal_levels(edges, spec):
    """Both sides' levels of the published formula with the tail a step further out, ascending."""
    k = 2 ** (spec.bits - 1)
    sides = []
    for p, m in edges:
        sides.append([*(p * j / (k - 1) for j in range(1, k)),
                      *(p + (m - p) * j / k for j in range(1, k + 1))])  # fmt: skip
    return np.array([*[-x for x in reversed(sides[1])], 0.0, *sides[0]])


def _worst(row):
    same = row[1:] * row[:-1] > 0
    return np.abs(np.where(same, row[1:] + row[:-1], 0)).max()


def test_what_needs_no_guard_is_as_it_was():
    w = normal(8, 6, 3, 3)
    for spec in (PWLQSpec(4, grid="float"), UniformSpec(7), UniformSpec(8, "asymmetric")):
        free = replace(spec, overflow="allowed")
        assert torch.equal(fake_quantize(w, spec), fake_quantize(w, free))
        edges = solve_edges(w, spec)
        assert complete_edges(w, edges, spec, 0) is edges
    roots = torch.linspace(0, 1, 5)[1:].sqrt()  # on no coarser grid
    small = torch.stack([-roots, roots], 1).reshape(1, -1).repeat(3, 1)
    spec = UniformSpec(8)  # neighbours of opposite signs never overflow
    assert torch.equal(fake_quantize(small, spec), fake_quantize(small, replace(spec, overflow="allowed")))  # fmt: skip  # noqa: E501


def test_formats_say_what_they_do_with_overflow():
    for spec in (PWLQSpec(4), UniformSpec(8)):
        free = replace(spec, overflow="allowed")
        assert "overflow allowed" in free.label
        assert "overflow" not in spec.label
        assert spec_from_json(free.to_json()) == free
        values = json.loads(spec.to_json())
        del values["overflow"]  # a text of an earlier version, whose levels may overflow
        assert spec_from_json(json.dumps(values)) == free
        with pytest.raises(
            ValueError, match="overflow must be one of 'pairs', 'allowed'; got 'no'"
        ):
            replace(spec, overflow="no")


def test_saved_tensors_come_back(tmp_path):
    w = normal(8, 6, 3, 3)
    tensors = {str(i): quantize(w, spec) for i, spec in enumerate(SPECS)}
    tensors["scaled"] = quantize(0.9 * w, SPECS[1], edges=0.9 * tensors["1"].edges)
    save_quantized(tmp_path / "q", tensors)
    for name, read in load_quantized(tmp_path / "q").items():
        assert torch.equal(read.dequantize(), tensors[name].dequantize()), name
        assert torch.equal(read.scale, tensors[name].scale), name


@pytest.mark.parametrize("learnable", [False, True])
def test_training_sees_what_conversion_makes(learnable):
    spec = PWLQSpec(4)
    fake = PWLQPerChannelFakeQuantize(spec, learnable=learnable)
    weight = torch.nn.Parameter(normal(8, 6, 3, 3))
    fake(weight)
    fake.disable_observer()
    tops = tops_of(fake.edges, spec)
    assert bool((tops < 127).any())
    parameters = [weight, *fake.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.02)
    for _ in range(5):
        optimizer.zero_grad()
        out = fake(weight)
        (out - 1.3 * normal(8, 6, 3, 3, seed=2)).square().sum().backward()
        optimizer.step()
        with torch.no_grad():
            weight.clamp_(-3, 3)
    q = quantize(weight.detach(), spec, edges=fake.edges.detach())
    assert torch.equal(fake(weight), q.dequantize())
    assert not overflows(q.integer_weight(), 0)
    assert torch.equal(tops_of(fake.edges, spec), tops)


def test_files_without_a_reach_get_one_for_the_weight():
    """A state dict of an earlier version, whose edges have no such column."""
    spec, w = PWLQSpec(4), normal(8, 6, 3, 3)
    fake = PWLQPerChannelFakeQuantize(spec)
    fake.disable_observer()
    state = fake.state_dict()
    state["activation_post_process.edges"] = solve_edges(w, spec)
    fake.load_state_dict(state)
    assert torch.equal(fake(w), fake_quantize(w, spec))
    assert fake.edges.shape == (2, 8, 3)


def test_chosen_levels_get_the_milder_of_two_remedies():
    """Either the guard, or a coarser grid; never worse than the guard."""
    spec, w = PWLQSpec(5), normal(32, 40)
    edges = complete_edges(w, solve_edges(w, spec), spec, 0)
    levels = levels_of(edges, spec)
    index = (w.unsqueeze(2) - levels.unsqueeze(1)).abs().argmin(2)
    target = levels.gather(1, (index + (w > 0).long() * 2 - 1).clamp(0, levels.shape[1] - 1))

    def error(values):
        return (values - target).square().sum(1)

    coarse = fitting_edges(target, spec, 0, edges, error)
    guard = error(fake_quantize(target, spec, edges=edges))
    ours = error(fake_quantize(target, spec, edges=coarse))
    assert bool((ours <= guard).all())
    assert bool((ours < guard).any())
    untouched = guard == 0
    assert bool(untouched.any())
    assert torch.equal(coarse[:, untouched], edges[:, untouched])


@pytest.mark.parametrize("spec", [PWLQSpec(4), PWLQSpec(6), UniformSpec(8)], ids=lambda s: s.label)
@pytest.mark.parametrize(("shape", "axis"), [*SHAPES, ((5, 4, 2, 3, 2), 1), ((3, 2, 1), 0)])
def test_exactly_the_weights_that_are_too_large_become_smaller(spec, shape, axis):
    """Written out, one weight after the other, in the order in which kernels add them."""
    w = normal(*shape)
    edges = complete_edges(w, solve_edges(w, spec, axis), spec, axis)
    moved = 1.4 * w + 0.1 * w.std() * normal(*shape, seed=1)
    if len(shape) == 4:
        moved = moved.to(memory_format=torch.channels_last)
    q = quantize(moved, spec, axis, edges=edges)
    scale = q.scale.reshape([-1 if i == axis else 1 for i in range(moved.dim())])
    nearest = (nearest_levels(moved, levels_of(edges, spec), axis) / scale).round()
    expected = _made_smaller(nearest.numpy(), q.codebook.numpy().astype(int), axis)
    assert np.array_equal(q.integer_weight().numpy(), expected)
    levels = fake_quantize(moved, spec, axis, edges=edges)
    assert np.array_equal((levels / scale).round().numpy(), expected)


def _made_smaller(integers, books, axis):
    smaller = integers.astype(int).flatten()
    for order in walks(np.arange(smaller.size).reshape(integers.shape), axis):
        before = smaller.copy()
        for book, row in zip(books, order, strict=True):
            for j, place in enumerate(row):
                value = before[place]
                both = [before[row[k]] for k in (j - 1, j + 1) if 0 <= k < len(row)]
                beside = max([abs(other) for other in both if other * value > 0], default=0)
                room = max(128 - beside, 64)
                if abs(value) > room:
                    fit = [x for x in book if 0 <= x * np.sign(value) <= room]
                    smaller[place] = max(fit, key=abs)
    return smaller.reshape(integers.shape)


@pytest.mark.parametrize("spec", [PWLQSpec(b, breakpoints=n) for b in (3, 4, 5) for n in (1, 2)])
def test_quantized_weights_keep_their_grid_without_its_reach(spec):
    """Also where they would fit the finest grid, as a few small weights beside a large one do."""
    w = torch.zeros(3, 14)
    w[0, 2:9] = torch.tensor([29.0, 137, 64, 8126, 0, 215, -1])
    w[1] = torch.randn(14, generator=torch.Generator().manual_seed(1)).exp()
    edges = solve_edges(w, replace(spec, policy="gaussian"))
    once = fake_quantize(w, spec, edges=edges)
    assert (once != w).any()
    assert torch.equal(fake_quantize(once, spec, edges=edges), once)
    assert torch.equal(fake_quantize(once.T, spec, 1, edges=edges), once.T)
