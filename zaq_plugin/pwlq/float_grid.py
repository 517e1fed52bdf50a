"""Decision intervals on PWLQ's float grid, by the paper's formula: the level's number."""

from __future__ import annotations

import torch
from torch import Tensor

from zaq_plugin.pwlq.levels import LONE, PiecewiseLinear, lone_sides


def _inverse_steps(
    edges: Tensor, spec: PiecewiseLinear, times: Tensor
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Per piece of one side: its start, steps per weight unit, and its steps, (C, 1) each."""
    below = torch.zeros_like(edges[:, :1])
    pieces = []
    for piece, usual in enumerate(spec.piece_steps):
        count = usual * times
        above = edges[:, piece : piece + 1]
        start = torch.zeros_like(below) if spec.overlapping else below
        width = above - start
        finite = (count / width).clamp(max=torch.finfo(width.dtype).max)  # of subnormal pieces, too
        inverse = torch.where(width > 0, finite, torch.zeros_like(width))
        pieces.append((start, inverse, count))
        below = above
    return pieces


def intervals(rows: Tensor, edges: Tensor, spec: PiecewiseLinear) -> Tensor:
    """Decision interval of each value on the float grid, int32; edges (sides, C, n + 1).

    Each piece counts the steps that a value climbs in it, 0 below and all of them above; the sum
    over the pieces is the level's number.
    """
    if spec.overlapping:
        return _overlapping_intervals(rows, edges, spec)
    times = _times(edges, spec)
    symmetric, zero = spec.symmetry == "symmetric", torch.zeros_like(times[0])
    number = torch.zeros_like(rows)
    for piece, (start, inverse, count) in enumerate(_inverse_steps(edges[0], spec, times[0])):
        low = -count if symmetric and piece == 0 else zero
        number += ((rows - start) * inverse).round_().clamp_(low, count)
    if spec.symmetry == "one-sided":
        return number.int()
    negative = _inverse_steps(edges[-1], spec, times[-1])
    for start, inverse, count in negative[1:] if symmetric else negative:
        number += ((rows + start) * inverse).round_().clamp_(-count, zero)
    return number.int().add_(_below_zero(edges, spec))


def _times(edges: Tensor, spec: PiecewiseLinear) -> Tensor:
    """(sides, C, 1): how many times the usual steps a side's pieces have."""
    return (1 + (LONE - 1) * lone_sides(edges, spec).to(edges.dtype)).unsqueeze(-1)


def _below_zero(edges: Tensor, spec: PiecewiseLinear) -> Tensor:
    """(C, 1) int32: number of the zero level, which is how many lie below it."""
    total = sum(spec.piece_steps)
    alone = lone_sides(edges, spec)
    below = torch.full_like(alone[0], total, dtype=torch.int32)
    if spec.symmetry == "asymmetric":
        below = below.masked_fill(alone[0], 0).masked_fill(alone[1], LONE * total)
    return below.unsqueeze(-1)


def _overlapping_intervals(rows: Tensor, edges: Tensor, spec: PiecewiseLinear) -> Tensor:
    """The overlapping variant: beyond p rules the tail's grid, which starts at zero."""
    one_sided = spec.symmetry == "one-sided"
    magnitude = rows.clamp(min=0) if one_sided else rows.abs()
    numbers = []
    for side, times in zip(edges, _times(edges, spec), strict=True):
        (_, inner, center), (_, outer, tail) = _inverse_steps(side, spec, times)
        zero = torch.zeros_like(center)
        near = (magnitude * inner).round_().clamp_(zero, center)
        far = (magnitude * outer).round_().clamp_(zero + 1, tail).add_(center)
        numbers.append(torch.where(magnitude > side[:, :1], far, near))
    if one_sided:
        return numbers[0].int()
    positive, negative = numbers[0], -numbers[-1]
    if spec.symmetry == "asymmetric":  # an empty side has no levels but zero
        empty = lone_sides(edges, spec).flip(0).unsqueeze(-1)
        positive = positive.masked_fill(empty[0], 0)
        negative = negative.masked_fill(empty[1], 0)
    signed = torch.where(rows < 0, negative, positive)
    return signed.int().add_(_below_zero(edges, spec))
