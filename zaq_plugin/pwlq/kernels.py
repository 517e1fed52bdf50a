"""Elementwise work over rows of channels, in blocks that stay in cache.

On the int8 grid every decision threshold is a multiple of half a step, so the half step a value
falls in decides its level: one multiplication, one truncation and one table look-up, exactly the
nearest level. Ties go away from zero.
On the float grid the paper's formula gives the level's number within its piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from zaq_plugin.pwlq.layout import blocks
from zaq_plugin.pwlq.levels import INT8_MAX, LONE, Grid, build_grid, lone_sides
from zaq_plugin.pwlq.spec import PWLQSpec, QuantSpec

BLOCK = 1 << 18
"""Elements per block: a megabyte of float32, which stays in cache and is enough for two threads."""


class Codebook(NamedTuple):
    """Sorted levels of each channel and the rank of each decision interval's level among them.

    Attributes:
        levels: (C, L) ascending, float32: integers in units of scale on the int8 grid.
        scale: (C,).
        rank: (C, J) int64, from decision interval to position in ``levels``.
    """

    levels: Tensor
    scale: Tensor
    rank: Tensor


class HalfSteps(NamedTuple):
    """How values find their decision interval on the int8 grid.

    Attributes:
        multiplier: (C, 1) half steps per weight unit.
        radius: the largest half step in the table.
        interval: (C, 2 radius + 1) int64 decision interval of each half step.
    """

    multiplier: Tensor
    radius: int
    interval: Tensor


def codebook_of(grid: Grid) -> Codebook:
    """Sort the levels of each channel (they are sorted already but for overlapping grids)."""
    levels, order = torch.sort(grid.values, dim=-1, stable=True)
    # + 0.0 turns -0.0 into 0.0.
    return Codebook(levels + 0.0, grid.scale, torch.argsort(order, dim=-1))


def codebook_dtype(spec: QuantSpec) -> torch.dtype:
    """int8, int16 for 8-bit asymmetric uniform levels, or float32 on the float grid."""
    if spec.grid == "float":
        return torch.float32
    wide = spec.kind == "uniform" and spec.symmetry != "symmetric" and spec.bits == 8
    return torch.int16 if wide else torch.int8


def codebook_from(edges: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Codebook (C, L) and scale (C,) that clip and breakpoints (sides, C, n + 1) generate."""
    book = codebook_of(build_grid(edges, spec))
    return book.levels.to(codebook_dtype(spec)), book.scale.clone()


def _radius(spec: QuantSpec) -> int:
    if isinstance(spec, PWLQSpec):
        return 2 * INT8_MAX
    return 2 * (2 ** (spec.bits - 1) - 1 if spec.symmetry == "symmetric" else 2**spec.bits - 1)


def half_steps(grid: Grid, spec: QuantSpec) -> HalfSteps:
    """The look-up table of every channel."""
    radius = _radius(spec)
    # A value v (in half steps, truncated towards zero to a cell) lies above a threshold t > 0 iff
    # cell >= t, and above t <= 0 iff cell > t.
    first = grid.thresholds + (grid.thresholds <= 0) + radius
    width = 2 * radius + 2
    steps = torch.zeros(grid.values.shape[0], width, dtype=torch.float32, device=first.device)
    position = first.clamp(0, width - 1).long()
    steps = steps.scatter_add(1, position, torch.ones_like(first))
    interval = torch.cumsum(steps[:, :-1], dim=1).long()
    return HalfSteps((2 / grid.scale).unsqueeze(1), radius, interval)


def _cells(rows: Tensor, multiplier: Tensor, radius: int) -> Tensor:
    """Half step of each value, counted from ``-radius``; int32."""
    cell = rows * multiplier
    if rows.is_cuda:
        cell = cell.nan_to_num_(0.0)
    return cell.clamp_(-radius, radius).int().add_(radius)


def _inverse_steps(
    edges: Tensor, spec: PWLQSpec, times: Tensor
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


def _intervals(rows: Tensor, edges: Tensor, spec: PWLQSpec) -> Tensor:
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


def _times(edges: Tensor, spec: PWLQSpec) -> Tensor:
    """(sides, C, 1): how many times the usual steps a side's pieces have."""
    return (1 + (LONE - 1) * lone_sides(edges, spec).to(edges.dtype)).unsqueeze(-1)


def _below_zero(edges: Tensor, spec: PWLQSpec) -> Tensor:
    """(C, 1) int32: number of the zero level, which is how many lie below it."""
    total = sum(spec.piece_steps)
    alone = lone_sides(edges, spec)
    below = torch.full_like(alone[0], total, dtype=torch.int32)
    if spec.symmetry == "asymmetric":
        below = below.masked_fill(alone[0], 0).masked_fill(alone[1], LONE * total)
    return below.unsqueeze(-1)


def _overlapping_intervals(rows: Tensor, edges: Tensor, spec: PWLQSpec) -> Tensor:
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


def look_up(
    rows: Tensor, grid: Grid, edges: Tensor, spec: QuantSpec, per_interval: Tensor
) -> Tensor:
    """``per_interval[c, interval of rows[c, k]]`` for every value.

    Args:
        rows: (C, K), any float dtype; computed in float32.
        grid: of the edges.
        edges: (sides, C, n + 1).
        per_interval: (C, J) what to return for each decision interval.

    Returns:
        (C, K) in per_interval's dtype.
    """
    edges = edges.float()
    table = half_steps(grid, spec) if grid.integer else None
    lookup = per_interval if table is None else torch.gather(per_interval, 1, table.interval)

    def place(channel: slice, values: Tensor) -> Tensor:
        if table is not None:
            return _cells(values, table.multiplier[channel], table.radius)
        if not isinstance(spec, PWLQSpec):
            raise TypeError("only PWLQ specs have a float grid.")
        return _intervals(values, edges[:, channel], spec)

    if rows.is_cuda:
        whole = slice(0, rows.shape[0])
        return select(lookup, place(whole, rows.float()), whole)
    out = torch.empty(rows.shape, dtype=per_interval.dtype, device=rows.device)
    for channel, element in cache_blocks(rows):
        found = place(channel, rows[channel, element].float())
        out[channel, element] = select(lookup, found, channel)
    return out


def cache_blocks(rows: Tensor) -> Iterator[tuple[slice, slice]]:
    """`layout.blocks` of the size that suits this machine's caches; one block on a GPU."""
    return blocks(rows, rows.numel() if rows.is_cuda else BLOCK)


def select(table: Tensor, column: Tensor, channel: slice) -> Tensor:
    """``table[c, column[c, k]]`` for the rows of one block.

    Args:
        table: (C, W).
        column: (B, K) int32, a block of channels.
        channel: which channels the block holds.
    """
    part = table[channel].contiguous()
    first = torch.arange(part.shape[0], dtype=torch.int32, device=part.device) * part.shape[1]
    flat = (column + first.unsqueeze(1)).reshape(-1)
    return part.view(-1).index_select(0, flat).view(column.shape)
