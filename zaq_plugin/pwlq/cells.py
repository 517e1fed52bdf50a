"""Levels and their cells: the nearest level of a value, and the nearest value of a level."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zaq_plugin.pwlq.base import Format
from zaq_plugin.pwlq.functional import complete_edges, fake_quantize
from zaq_plugin.pwlq.kernels import codebook_of, from_rows, to_rows
from zaq_plugin.pwlq.levels import build_grid, tops_of, with_tops, without_tops

MARGIN = 0.01
"""Of a step: how far inside a cell its outermost value is taken, so that rounding cannot decide."""


def levels_of(edges: Tensor, spec: Format) -> Tensor:
    """(channels, L) ascending levels in weight units of clips and breakpoints (sides, C, n + 1)."""
    book = codebook_of(build_grid(edges.detach(), spec))
    return book.levels * book.scale.unsqueeze(1)


def nearest_level(values: Tensor, levels: Tensor) -> Tensor:
    """The level nearest to each value, the lower one of two that are equally near.

    Args:
        values: (channels, elements).
        levels: (channels, L) ascending.

    Returns:
        (channels, elements).
    """
    above = torch.searchsorted(levels, values.contiguous()).clamp(1, levels.shape[1] - 1)
    low, high = levels.gather(1, above - 1), levels.gather(1, above)
    return torch.where(values - low <= high - values, low, high)


def nearest_in_cell(values: Tensor, target: Tensor, levels: Tensor) -> Tensor:
    """The value closest to each one that is rounded to the level it is wanted on.

    The outermost cells end at their levels.

    Args:
        values: (channels, elements).
        target: (channels, elements) levels, as closely as their type can tell.
        levels: (channels, L) ascending.

    Returns:
        (channels, elements); inside the cell by `MARGIN` of the step on each side.
    """
    target = nearest_level(target, levels)  # which may have been rounded to another type
    index = torch.searchsorted(levels.contiguous(), target.contiguous())
    below = levels.gather(1, (index - 1).clamp(min=0))
    above = levels.gather(1, (index + 1).clamp(max=levels.shape[1] - 1))
    middle = levels.gather(1, index)
    share = 0.5 - MARGIN
    low, high = middle - share * (middle - below), middle + share * (above - middle)
    return torch.minimum(torch.maximum(values, low), high)


@torch.no_grad()
def float_for_levels(
    weight: Tensor, chosen: Tensor, spec: Format, axis: int | None, edges: Tensor
) -> Tensor:
    """The float weight closest to a given one that is rounded to the levels wanted.

    Args:
        weight: Any shape.
        chosen: Same shape; each a level of its channel.
        spec, axis, edges: As for `fake_quantize`.

    Returns:
        Same shape and type as the weight.
    """
    rows, target = to_rows(weight, axis).float(), to_rows(chosen, axis).float()
    inside = from_rows(nearest_in_cell(rows, target, levels_of(edges, spec)), weight, axis)
    inside = inside.to(weight.dtype)
    # Rounding of the scale may move a level by one unit in the last place, and pieces of a float
    # grid need not meet half-way: there the level itself is taken.
    levels = fake_quantize(chosen, spec, axis, edges=edges)
    missed = fake_quantize(inside, spec, axis, edges=edges) != levels
    return torch.where(missed, levels, inside)


@torch.no_grad()
def fitting_edges(
    chosen: Tensor,
    spec: Format,
    axis: int | None,
    edges: Tensor,
    error: Callable[[Tensor], Tensor],
) -> Tensor:
    """Edges for weights whose levels were chosen one by one, so that some overflow.

    There either the guard makes weights smaller, or the channel's int8 grid becomes coarser;
    whichever is less wrong. See `zaq_plugin.pwlq.overflow`.

    Args:
        chosen: Any shape; each a level of its channel.
        spec, axis, edges: As for `fake_quantize`; edges have a reach if the format is guarded.
        error: (channels,) how wrong weights of that shape are.

    Returns:
        The edges, some with a shorter or longer reach.
    """
    levels = fake_quantize(chosen, spec, axis, edges=edges)
    if not spec.guarded or torch.equal(levels, chosen):
        return edges
    plain, before = without_tops(edges, spec), tops_of(edges, spec)
    coarser = tops_of(complete_edges(chosen, plain, spec, axis), spec)
    coarser = torch.minimum(coarser, before)
    coarse = fake_quantize(chosen, spec, axis, edges=with_tops(plain, coarser))
    better = error(coarse) < error(levels)
    return with_tops(plain, torch.where(better.to(before.device), coarser, before))
