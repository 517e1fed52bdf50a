"""Any tensor as rows of one channel each, and elementwise work over them.

On the int8 grid every decision threshold is a multiple of half a step, so the half step a value
falls in decides its level: one multiplication, one truncation and one table look-up, exactly the
nearest level. Ties go away from zero.
On the float grid a formula of the format gives the level's number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from zaq_plugin.pwlq.base import INT8_MAX, Format, Grid
from zaq_plugin.pwlq.levels import build_grid


def channels_of(w: Tensor, axis: int | None) -> int:
    """Number of channels along a normalised axis; 1 per tensor."""
    return 1 if axis is None else w.shape[axis]


def to_rows(w: Tensor, axis: int | None) -> Tensor:
    """w as (channels, elements): a view where the layout allows, else a copy."""
    if axis is None:
        return w.reshape(1, -1)
    return w.movedim(axis, 0).reshape(w.shape[axis], -1)


def from_rows(rows: Tensor, like: Tensor, axis: int | None) -> Tensor:
    """Undo `to_rows`: like's shape and memory format, rows' dtype."""
    shaped = from_rows_shape(rows, tuple(like.shape), axis)
    out = torch.empty_like(like, dtype=rows.dtype)
    return shaped if shaped.stride() == out.stride() else out.copy_(shaped)


def from_rows_shape(rows: Tensor, shape: tuple[int, ...], axis: int | None) -> Tensor:
    """Rows back in a tensor of the given shape (contiguous if rows are and axis is 0)."""
    if axis is None:
        return rows.reshape(shape)
    moved = (shape[axis], *(s for i, s in enumerate(shape) if i != axis))
    return rows.reshape(moved).movedim(0, axis)


def blocks(rows: Tensor, elements: int) -> Iterator[tuple[slice, slice]]:
    """Slices that cut (channels, elements) into pieces that stay in cache.

    Whole rows where they are short, parts of single rows where they are long. Elementwise work
    gives the same result for any cut.
    """
    channels, length = rows.shape
    if length >= elements:
        for channel in range(channels):
            for start in range(0, length, elements):
                yield slice(channel, channel + 1), slice(start, start + elements)
        return
    step = max(1, elements // length)
    for start in range(0, channels, step):
        yield slice(start, start + step), slice(0, length)


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


def codebook_of(grid: Grid) -> Codebook:
    """Sort the levels of each channel (they are sorted already but for overlapping grids)."""
    levels, order = torch.sort(grid.values, dim=-1, stable=True)
    # + 0.0 turns -0.0 into 0.0.
    return Codebook(levels + 0.0, grid.scale, torch.argsort(order, dim=-1))


def codebook_dtype(spec: Format) -> torch.dtype:
    """int8, int16 for 8-bit asymmetric uniform levels, or float32 on the float grid."""
    if spec.grid == "float":
        return torch.float32
    return torch.int16 if spec.largest_level > INT8_MAX else torch.int8


def codebook_from(edges: Tensor, spec: Format) -> tuple[Tensor, Tensor]:
    """Codebook (C, L) and scale (C,) that clip and breakpoints (sides, C, n + 1) generate."""
    book = codebook_of(build_grid(edges, spec))
    return book.levels.to(codebook_dtype(spec)), book.scale.clone()


class Table(NamedTuple):
    """What values in each half step of each channel become.

    Attributes:
        multiplier: (C, 1) half steps per weight unit.
        radius: the largest half step in the table.
        values: (C, 2 radius + 1), contiguous.
    """

    multiplier: Tensor
    radius: int
    values: Tensor


def table_of(grid: Grid, spec: Format, per_interval: Tensor) -> Table:
    """The table of (C, J) what each decision interval of an int8 grid stands for."""
    radius = 2 * spec.largest_level
    # A value v (in half steps, truncated towards zero to a cell) lies above a threshold t > 0 iff
    # cell >= t, and above t <= 0 iff cell > t.
    first = grid.thresholds + (grid.thresholds <= 0) + radius
    width = 2 * radius + 2
    position = first.clamp(0, width - 1).long()
    steps = torch.zeros(len(first), width, dtype=torch.float32, device=first.device)
    if per_interval.is_floating_point():
        steps = steps.scatter_add_(1, position, torch.ones_like(first))
        interval = torch.cumsum(steps[:, :-1], dim=1).long()
        values = torch.gather(per_interval, 1, interval)
    else:  # by how much they differ, which sums up exactly
        whole = per_interval.float()
        steps = steps.scatter_add_(1, position, whole.diff(dim=1))
        values = (torch.cumsum(steps[:, :-1], dim=1) + whole[:, :1]).to(per_interval.dtype)
    return Table((2 / grid.scale).unsqueeze(1), radius, values)


def look_up(rows: Tensor, grid: Grid, edges: Tensor, spec: Format, per_interval: Tensor) -> Tensor:
    """``per_interval[c, interval of rows[c, k]]`` for every value.

    Args:
        rows: (C, K), any float dtype; computed in float32.
        grid: of the edges.
        edges: (sides, C, n + 1).
        per_interval: (C, J) what to return for each decision interval.

    Returns:
        (C, K) in per_interval's dtype; no gradient.
    """
    if grid.integer:
        return look_up_in(rows, table_of(grid, spec, per_interval))
    edges = edges.float()
    out = torch.empty(rows.shape, dtype=per_interval.dtype, device=rows.device)
    for channel, element in cache_blocks(rows):
        intervals = spec.intervals(rows[channel, element].float(), edges[:, channel])
        select(per_interval[channel], intervals, out[channel, element])
    return out


def look_up_in(rows: Tensor, table: Table) -> Tensor:
    """A table's value for every value of rows (C, K); computed in float32."""
    out = torch.empty(rows.shape, dtype=table.values.dtype, device=rows.device)
    for channel, element in cache_blocks(rows):
        cell = rows[channel, element].float() * table.multiplier[channel]
        if rows.is_cuda:
            cell = cell.nan_to_num_(0.0)
        cell = cell.clamp_(-table.radius, table.radius).int()
        select(table.values[channel], cell, out[channel, element], table.radius)
    return out


def cache_blocks(rows: Tensor) -> Iterator[tuple[slice, slice]]:
    """`blocks` of the size that suits this machine's caches; one block on a GPU."""
    return blocks(rows, rows.numel() if rows.is_cuda else BLOCK)


def select(table: Tensor, column: Tensor, out: Tensor | None = None, first: int = 0) -> Tensor:
    """``table[c, first + column[c, k]]`` for the rows of one block; no gradient.

    Args:
        table: (B, W).
        column: (B, K) int32.
        out: (B, K) to write to, contiguous as blocks are; a new tensor by default.
        first: see above.
    """
    table = table.detach().contiguous()
    starts = torch.arange(len(table), dtype=torch.int32, device=table.device) * table.shape[1]
    flat = (column + (starts + first).unsqueeze(1)).reshape(-1)
    target = None if out is None else out.view(-1)
    return torch.index_select(table.view(-1), 0, flat, out=target).view(column.shape)
