"""Outside graphs nothing but the operator's dispatch is left out."""

import copy
import gc

import pytest
import torch

from zaq_plugin.pwlq import PWLQSpec, UniformSpec, fake_quantize, solve_edges, spec_from_name
from zaq_plugin.pwlq.functional import complete_edges
from zaq_plugin.pwlq.rounding import REMEMBERED

SPECS = [
    PWLQSpec(4),
    PWLQSpec(3, breakpoints=3, symmetry="symmetric"),
    PWLQSpec(4, grid="float", symmetry="symmetric"),
    PWLQSpec(4, overlapping=True, symmetry="symmetric"),
    UniformSpec(8),
    UniformSpec(8, "asymmetric"),
    spec_from_name("pot4"),
    spec_from_name("codebook4"),
]
SHAPES = [((12, 7), 0), ((7, 12), 1), ((8, 6, 3, 3), 0), ((8, 1, 3, 3), 0), ((6, 8, 2, 2), 1),
          ((6, 8, 3, 3), None), ((2, 70000), 0), ((5,), 0)]  # fmt: skip


def by_operator(w, spec, axis, edges):
    return torch.ops.zaq.pwlq_fake_quantize(w, edges, spec.to_json(), axis)


def gradients(function, w, edges, spec, axis, given):
    leaves = [w.detach().clone().requires_grad_(), edges.clone().requires_grad_(edges.ndim > 0)]
    out = function(leaves[0], spec, axis, edges=leaves[1])
    return out, *torch.autograd.grad(out, leaves, given)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.label)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_values_and_gradients_are_the_operators(spec, shape, axis, share):
    """No channel beyond its clip, some and all of them; the numbers of the operator, to the bit."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(shape, generator=generator)
    edges = complete_edges(w, solve_edges(w, spec, axis), spec, axis)
    grown = torch.rand(shape, generator=generator) < share
    moved = torch.where(grown, 1.5 * w, 0.9 * w)
    given = torch.randn(shape, generator=generator)
    ours, theirs = (gradients(f, moved, edges, spec, axis, given)
                    for f in (fake_quantize, by_operator))  # fmt: skip
    for mine, yours in zip(ours, theirs, strict=True):
        assert mine.stride() == yours.stride()
        assert torch.equal(mine, yours)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_and_layouts(dtype):
    spec = PWLQSpec(4)
    w = torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    w = w.to(memory_format=torch.channels_last)
    edges = complete_edges(w, solve_edges(w, spec), spec, 0)
    given = torch.ones_like(w, memory_format=torch.contiguous_format)
    ours, theirs = (gradients(f, 1.01 * w, edges, spec, 0, given)
                    for f in (fake_quantize, by_operator))  # fmt: skip
    for mine, yours in zip(ours, theirs, strict=True):
        assert (mine.dtype, mine.stride()) == (yours.dtype, yours.stride())
        assert torch.equal(mine, yours)


@pytest.mark.parametrize("change", ["in place", "its data", "new data", "the tensor beside it"])
def test_edges_that_change_are_seen(change):
    """What is remembered of a tensor's edges holds as long as they do."""
    spec, w = PWLQSpec(4), torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    edges = complete_edges(w, solve_edges(w, spec), spec, 0)
    wider = 1.3 * edges
    before = fake_quantize(w, spec, edges=edges)
    if change == "in place":
        edges.mul_(1.3)
    elif change == "its data":
        edges.data.mul_(1.3)
    elif change == "new data":
        edges.data = wider.clone()
    else:
        edges = copy.deepcopy(edges).mul_(1.3)
    after = fake_quantize(w, spec, edges=edges)
    assert torch.equal(after, by_operator(w, spec, 0, wider))
    assert not torch.equal(after, before)
    narrow = PWLQSpec(3)
    assert torch.equal(fake_quantize(w, narrow, edges=edges), by_operator(w, narrow, 0, wider))


def test_nothing_is_remembered_of_edges_that_are_gone():
    spec, w = PWLQSpec(4), torch.randn(6, 20)
    edges = complete_edges(w, solve_edges(w, spec), spec, 0)
    fake_quantize(w, spec, edges=edges)
    gc.collect()
    count = len(REMEMBERED)
    del edges
    gc.collect()
    assert len(REMEMBERED) == count - 1
