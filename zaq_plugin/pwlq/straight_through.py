"""Gradients of fake quantization: straight through inside the range, and to clip and breakpoints.

The surrogate replaces round(v) by v + constant. On piece l, q = p_l + (p_{l+1} - p_l) (v +
constant) with v = (|r| - p_l) / (p_{l+1} - p_l), so that with e = q - |r| (the quantization error)

    dq/d|r| = 1,   dq/dp_{l+1} = e / (p_{l+1} - p_l),   dq/dp_l = -e / (p_{l+1} - p_l),

and beyond the clip q = m: dq/d|r| = 0, dq/dm = 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zaq_plugin.pwlq.base import Format
from zaq_plugin.pwlq.kernels import cache_blocks
from zaq_plugin.pwlq.levels import PiecewiseLinear, without_tops


def value_gradient(grad: Tensor, rows: Tensor, edges: Tensor, spec: Format) -> Tensor:
    """The gradient to the values, (C, K): grad where the value lies within the range."""
    low, high = (t.to(rows.dtype) for t in spec.limits(edges.detach()))
    if rows.is_cuda:
        return torch.where((rows >= low) & (rows <= high), grad, 0.0)
    out = torch.empty_like(grad, memory_format=torch.contiguous_format)
    for channel, element in cache_blocks(rows):
        values, part = rows[channel, element], out[channel, element]
        # Written as numbers, comparisons take a quarter of the time that truth values do.
        torch.ge(values, low[channel], out=part)
        part.mul_(torch.le(values, high[channel], out=torch.empty_like(part)))
        part.mul_(grad[channel, element])
    return out


def edge_gradients(
    grad: Tensor, rows: Tensor, quantized: Tensor, edges: Tensor, spec: Format
) -> Tensor:
    """The gradient to the edges, of their shape, summed over each channel's values.

    A reach has none: the grid's top is no parameter.
    """
    plain = without_tops(edges, spec)
    if plain.shape != edges.shape:
        gradient = edge_gradients(grad, rows, quantized, plain, spec)
        return torch.nn.functional.pad(gradient, (0, 1))
    compute = torch.float64 if edges.dtype == torch.float64 else torch.float32
    grad, rows, quantized = (t.to(compute) for t in (grad, rows, quantized))
    edges = edges.detach().to(compute)
    return spec.edge_gradients(grad, rows, quantized, edges)


def piece_gradients(
    grad: Tensor, rows: Tensor, quantized: Tensor, edges: Tensor, spec: PiecewiseLinear
) -> Tensor:
    """`edge_gradients` of clip and breakpoints, of each side by itself."""
    overlapping = spec.overlapping
    sides = []
    for side in range(edges.shape[0]):
        if spec.symmetry == "asymmetric":
            own = (rows > 0) if side == 0 else (rows < 0)
        else:
            own = torch.ones_like(rows, dtype=torch.bool)
        signed = grad * torch.sign(rows) * own
        magnitude, level = rows.abs(), quantized.abs()
        if spec.symmetry == "one-sided":
            signed = signed * (rows > 0)
        sides.append(_side(signed, magnitude, level, edges[side], overlapping))
    return torch.stack(sides)


def _side(
    grad: Tensor, magnitude: Tensor, level: Tensor, edges: Tensor, overlapping: bool
) -> Tensor:
    clip = edges[:, -1:]
    inside = magnitude <= clip
    error = (level - magnitude) * grad * inside
    totals = [torch.zeros_like(edges[:, 0]) for _ in range(edges.shape[1])]
    below = torch.zeros_like(clip)
    for piece in range(edges.shape[1]):
        above = edges[:, piece : piece + 1]
        in_piece = (magnitude <= above) & ((magnitude > below) | (piece == 0))
        start = torch.zeros_like(below) if overlapping else below
        width = above - start
        share = _reciprocal(width).squeeze(1)
        pull = (error * in_piece).sum(1) * share
        totals[piece] = totals[piece] + pull
        if piece > 0 and not overlapping:
            totals[piece - 1] = totals[piece - 1] - pull
        below = above
    totals[-1] = totals[-1] + (grad * ~inside).sum(1)
    return torch.stack(totals, -1)


def _reciprocal(width: Tensor) -> Tensor:
    """``1 / width``; nothing for pieces of no width, and for those so narrow that it is infinite.

    Dead channels of trained networks hold subnormal weights, on which nothing depends.
    """
    wide = width >= torch.finfo(width.dtype).tiny
    return torch.where(wide, 1 / width, torch.zeros_like(width))


def range_gradients(grad: Tensor, rows: Tensor, quantized: Tensor, edges: Tensor) -> Tensor:
    """Both ends share one step: dq/dm+ = dq/dm- = e / (m+ + m-) inside (the zero point held)."""
    high, low = edges[0], -edges[1]
    above, below = rows > high, rows < low
    inside = ~(above | below)
    width = high - low
    share = _reciprocal(width).squeeze(1)
    pull = ((quantized - rows) * grad * inside).sum(1) * share
    return torch.stack([pull + (grad * above).sum(1), pull - (grad * below).sum(1)]).unsqueeze(-1)
