"""Fake quantization outside graphs: what the operator computes, without its dispatch.

Bit for bit the same. Training at length calls it for every layer and step, and what it learns of a
weight on the way (its channels' extremes) serves the checks and the gradient as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import _get_current_dispatch_mode

from zaq_plugin.pwlq.checks import check_finite
from zaq_plugin.pwlq.kernels import cache_blocks, from_rows, to_rows
from zaq_plugin.pwlq.rounding import Rounder
from zaq_plugin.pwlq.straight_through import edge_gradients, value_gradient

PLAIN = (Tensor, nn.Parameter)


def is_eager(*tensors: Tensor | None) -> bool:
    """Whether nobody records operators: no compiler, export, trace, fake tensor or mode."""
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and _get_current_dispatch_mode() is None
        and all(x is None or type(x) in PLAIN for x in tensors)
    )


def extremes(w: Tensor, axis: int | None) -> tuple[Tensor, Tensor]:
    """(channels,) smallest and largest value of each.

    Raises:
        ValueError: some are NaN or infinite.
    """
    rows = to_rows(w.detach(), axis)
    low, high = rows[:, 0].clone(), rows[:, 0].clone()
    for channel, element in cache_blocks(rows):
        block = rows[channel, element]
        torch.minimum(low[channel], block.amin(1), out=low[channel])
        torch.maximum(high[channel], block.amax(1), out=high[channel])
    if not bool(torch.isfinite(torch.stack([low, high])).all()):
        check_finite(w)
    return low, high


def fake_quantize(
    w: Tensor, edges: Tensor, rounder: Rounder, axis: int | None, ends: tuple[Tensor, Tensor]
) -> Tensor:
    """`functional.fake_quantize` of checked input.

    Args:
        w: the weight.
        edges: of its format, differentiable.
        rounder: theirs.
        axis: the channels'.
        ends: `extremes` of the weight.
    """
    outside = None
    if torch.is_grad_enabled() and w.requires_grad:
        low, high = (limit.to(w.dtype).view(-1) for limit in rounder.spec.limits(rounder.edges))
        outside = ((ends[0] < low) | (ends[1] > high)).nonzero().view(-1)
    out: Tensor = _FakeQuantize.apply(w, edges, rounder, axis, outside)
    return out


class _FakeQuantize(torch.autograd.Function):
    """See `straight_through`."""

    @staticmethod
    def forward(
        w: Tensor, edges: Tensor, rounder: Rounder, axis: int | None, outside: Tensor | None
    ) -> Tensor:
        return rounder.round(w, axis)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        w, edges, ctx.rounder, ctx.axis, ctx.outside = inputs
        ctx.save_for_backward(w, edges)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        w, edges = ctx.saved_tensors
        to_w = to_edges = None
        if ctx.needs_input_grad[0]:
            to_w = _value_gradient(grad, w, ctx.rounder, ctx.axis, ctx.outside)
        if ctx.needs_input_grad[1]:
            rows, quantized = (to_rows(x, ctx.axis) for x in (w, ctx.rounder.round(w, ctx.axis)))
            given = to_rows(grad, ctx.axis)
            to_edges = edge_gradients(given, rows, quantized, edges, ctx.rounder.spec)
            to_edges = to_edges.to(edges.dtype)
        return to_w, to_edges, None, None, None


def _value_gradient(
    grad: Tensor, w: Tensor, rounder: Rounder, axis: int | None, outside: Tensor
) -> Tensor:
    """The gradient itself but for channels of which some values are outside."""
    if not len(outside):
        return grad if grad.stride() == w.stride() else torch.empty_like(w).copy_(grad)
    given, rows, edges = to_rows(grad, axis), to_rows(w, axis), rounder.edges
    if 2 * len(outside) > len(rows):
        passed = value_gradient(given, rows, edges, rounder.spec)
    else:
        some, moved = given.index_select(0, outside), rows.index_select(0, outside)
        passed = given.clone(memory_format=torch.contiguous_format)
        passed[outside] = value_gradient(some, moved, edges[:, outside], rounder.spec)
    return from_rows(passed, w, axis)
