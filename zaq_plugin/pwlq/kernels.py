"""Elementwise work over rows of channels, in blocks that stay in cache.

On the int8 grid every decision threshold is a multiple of half a step, so the half step that a value falls in decides its level:
one multiplication, one truncation and one table look-up, exactly the nearest level. Ties go away from zero.
On the float grid the level is found by binary search among the thresholds.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from zaq_plugin.pwlq.layout import blocks
from zaq_plugin.pwlq.levels import INT8_MAX, Grid
from zaq_plugin.pwlq.spec import PWLQSpec, QuantSpec

BLOCK = 65536
"""Elements per block: a quarter of a megabyte of float32, within any second-level cache."""


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


class Table(NamedTuple):
    """What a block of values needs to find decision intervals.

    Attributes:
        multiplier: (C, 1) half steps per weight unit; unused on the float grid.
        radius: largest half step looked up; 0 on the float grid.
        interval: (C, 2 radius + 1) int64 decision interval of each half step (int8 grid).
        thresholds: (C, J - 1) float32 (float grid).
    """

    multiplier: Tensor
    radius: int
    interval: Tensor
    thresholds: Tensor


def codebook_of(grid: Grid) -> Codebook:
    """Sort the levels of each channel (they are sorted already but for overlapping grids)."""
    levels, order = torch.sort(grid.values, dim=-1, stable=True)
    # + 0.0 turns -0.0 into 0.0.
    return Codebook(levels + 0.0, grid.scale, torch.argsort(order, dim=-1))


def _radius(spec: QuantSpec) -> int:
    if isinstance(spec, PWLQSpec):
        return 2 * INT8_MAX
    return 2 * (2 ** (spec.bits - 1) - 1 if spec.symmetry == "symmetric" else 2**spec.bits - 1)


def build_table(grid: Grid, spec: QuantSpec) -> Table:
    """The look-up table of every channel; pure tensor code, so that it also traces."""
    if not grid.integer:
        empty = torch.zeros_like(grid.thresholds[:, :0])
        return Table(empty, 0, empty.long(), grid.thresholds.contiguous())
    radius = _radius(spec)
    # A value v (in half steps, truncated towards zero to a cell) lies above a threshold t > 0 iff
    # cell >= t, and above t <= 0 iff cell > t.
    first = grid.thresholds + (grid.thresholds <= 0) + radius
    steps = torch.zeros(
        grid.values.shape[0], 2 * radius + 2, dtype=torch.float32, device=first.device
    )
    position = first.clamp(0, 2 * radius + 1).long()
    steps = steps.scatter_add(1, position, torch.ones_like(first))
    interval = torch.cumsum(steps[:, :-1], dim=1).long()
    return Table((2 / grid.scale).unsqueeze(1), radius, interval, grid.thresholds)


def flat_index(rows: Tensor, table: Table, grid_width: int, first_channel: Tensor) -> Tensor:
    """Index of each value in a flattened per-channel table of ``grid_width`` columns.

    Int8 grid: the column is the half step. Float grid: the column is the decision interval.
    """
    offset = first_channel * grid_width
    if table.radius:
        cell = (rows * table.multiplier).nan_to_num_(0.0) if rows.is_cuda else rows * table.multiplier
        cell = cell.clamp_(-table.radius, table.radius)
        return cell.long().add_(offset + table.radius)
    return torch.searchsorted(table.thresholds, rows.contiguous(), right=True).add_(offset)


def look_up(rows: Tensor, grid: Grid, spec: QuantSpec, per_interval: Tensor) -> Tensor:
    """``per_interval[c, interval of rows[c, k]]`` for every value.

    Args:
        rows: (C, K), any float dtype; computed in float32.
        per_interval: (C, J) what to return for each decision interval.

    Returns:
        (C, K) in per_interval's dtype.
    """
    table = build_table(grid, spec)
    lookup = torch.gather(per_interval, 1, table.interval) if table.radius else per_interval
    width = lookup.shape[1]
    lookup = lookup.contiguous()
    channels = torch.arange(rows.shape[0], device=rows.device).unsqueeze(1)
    if rows.is_cuda or torch.compiler.is_compiling():
        return torch.take(lookup, flat_index(rows.float(), table, width, channels))
    out = torch.empty(rows.shape, dtype=per_interval.dtype, device=rows.device)
    for channel, element in blocks(rows, BLOCK):
        part = Table(
            table.multiplier[channel],
            table.radius,
            table.interval[:0],
            table.thresholds[channel],
        )
        index = flat_index(rows[channel, element].float(), part, width, channels[channel])
        out[channel, element] = torch.take(lookup, index)
    return out
