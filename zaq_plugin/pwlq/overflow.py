"""Levels with which no two products overflow 16 bits, on any processor.

Int8 kernels of processors without VNNI (AVX2's and AVX-512's ``vpmaddubsw``) add two products of an
activation (0 to 255) and a weight (-127 to 127) in 16 bits, which saturate, silently: 255 * (127 +
127) is 64,770 and becomes 32,767. Nothing is lost where the magnitudes of two neighbouring weights
of one sign add up to at most `LIMIT`. Formats with ``overflow="pairs"`` keep to that:

* *The grid.* A channel whose neighbours would add up to more is put on a coarser int8 grid: its
  largest level is not 127 but an integer below, its *top*. `zaq_plugin.pwlq.tops` chooses it once,
  for the weights whose edges were solved.
* *The way down.* Edges carry the top in one more column, the grid's *reach* ``clip * 127 / top``:
  (sides, channels, n + 2). So it goes wherever edges go (observers, fake-quantizers, state dicts,
  converters, files), and `build_grid` alone reads it (`tops_of`). Edges without it, as
  `solve_edges` and users give them, get one for the weight at hand.
* *The guard.* Weights move afterwards, by training or by rounding. So whatever is quantized is
  looked at again, and a weight that is too large beside its neighbour takes the next smaller level
  that fits (`guarded`). Weights that fit stay, so that quantizing twice equals once. `quantize` and
  `fake_quantize` are the only places where weights meet levels: no path goes past the guard.

Neighbours are those of the order in which kernels add: inputs last, as in channels-last memory.
Depthwise layers count, too: FBGEMM multiplies them in 16 bits. The float grid is as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from zaq_plugin.pwlq.base import Format
from zaq_plugin.pwlq.kernels import (
    BLOCK,
    channels_of,
    codebook_of,
    from_rows,
    from_rows_shape,
    look_up,
    to_rows,
)
from zaq_plugin.pwlq.levels import Grid, build_grid

LIMIT = (2**15 - 1) // 255
"""The largest sum of two weights whose products with 255 fit in 16 bits: 128."""

HALF = LIMIT // 2
"""What two neighbours may both be."""


def worst_pairs(integers: Tensor, axis: int | None) -> Tensor:
    """(channels,) the largest sum of two neighbours' magnitudes that have one sign.

    Args:
        integers: levels of a weight, int8, any shape.
        axis: the channels' axis; None for one channel, in which both of the first two axes may be
            the kernel's inputs.
    """
    worst = torch.zeros(channels_of(integers, axis), dtype=torch.int16, device=integers.device)
    for sums in _neighbour_sums(integers, axis):
        if sums.numel():
            rows = sums.flatten(1)
            worst = torch.maximum(worst, torch.maximum(rows.amax(1), -rows.amin(1)))
    return worst


def places_of(shape: Sequence[int], axis: int) -> int:
    """Places of the kernel, over which each input's weights of a channel's row are spread."""
    return math.prod([n for i, n in enumerate(shape) if i != axis][1:])


def wide_channels(rows: Tensor, scale: Tensor, places: int) -> Tensor:
    """Indices of channels of which some neighbours are too large; quickly, as training asks it.

    Args:
        rows: (channels, elements) float32, levels times their scale, inputs outermost.
        scale: (channels,) the int8 grid's step.
        places: see `places_of`.
    """
    length = rows.shape[1]
    step = len(rows) if rows.is_cuda else max(1, BLOCK // length)
    highest, lowest = [], []
    if places < length:
        for start in range(0, len(rows), step):
            block = rows[start : start + step]
            sums = block[:, places:] + block[:, :-places]
            highest.append(sums.amax(1))  # aminmax takes ten times as long
            lowest.append(sums.amin(1))
    worst = [torch.cat(highest), -torch.cat(lowest)] if highest else []
    if places > 1:
        across = rows[:, 1:places] + rows[:, length - places : -1]
        worst += [across.amax(1), -across.amin(1)]
    if not worst:
        return torch.empty(0, dtype=torch.long, device=rows.device)
    return (torch.stack(worst).amax(0) > (LIMIT + 0.5) * scale).nonzero().squeeze(1)


def guarded(integers: Tensor, edges: Tensor, spec: Format, axis: int | None) -> Tensor:
    """Levels of a weight with those that are too large beside their neighbours made smaller.

    A weight larger than what its larger neighbour of the same sign leaves of `LIMIT`, and larger
    than half of it, takes the next smaller level that is not.

    Args:
        integers: levels of a weight, int8, any shape.
        edges: (sides, channels, n + 2) of their grid.
        spec: its format.
        axis: as for `worst_pairs`.

    Returns:
        The same tensor if there is nothing to do, else a new one.
    """
    wide = (worst_pairs(integers, axis) > LIMIT).nonzero().squeeze(1)
    if not len(wide):
        return integers
    levels = integers.clone()
    some = levels if axis is None else levels.index_select(axis, wide)
    lower(some, edges[:, wide], spec, axis)
    return some if axis is None else levels.index_copy_(axis, wide, some)


def lower(integers: Tensor, edges: Tensor, spec: Format, axis: int | None) -> None:
    """`guarded` for channels of which most overflow; in place.

    Args:
        integers: of any type.
        edges, spec, axis: as for `guarded`.
    """
    books = reachable(build_grid(edges, spec), edges, spec)
    if axis is not None:
        moved = _lowered(to_rows(integers, axis), books, places_of(integers.shape, axis))
        integers.copy_(from_rows_shape(moved, tuple(integers.shape), axis))
        return
    for order in orders(integers, axis):
        permuted = integers.permute(order)
        rows = permuted.reshape(1, -1)
        permuted.copy_(_lowered(rows, books, 1).reshape(permuted.shape))


def reachable(grid: Grid, edges: Tensor, spec: Format) -> Tensor:
    """(channels, L) ascending levels that values are rounded to.

    The overlapping variant's tail has levels in the center, which no value takes; in their place is
    the next smaller one that values do.
    """
    if not spec.overlapping:
        return grid.values
    levels = codebook_of(grid).levels
    values = levels * grid.scale.unsqueeze(1)
    taken = look_up(values, grid, edges, spec, grid.values) == levels
    above = torch.where(taken, levels, 0.0).clamp(min=0).cummax(1).values
    below = torch.where(taken, levels, 0.0).clamp(max=0).flip(1).cummin(1).values.flip(1)
    return torch.where(levels > 0, above, below)


def integers_of(
    w: Tensor, edges: Tensor, spec: Format, axis: int | None, grid: Grid | None = None
) -> Tensor:
    """The levels nearest to a weight, int8 in units of the grid's step; w's shape; unguarded."""
    grid = grid or build_grid(edges, spec)
    rows = look_up(to_rows(w, axis), grid, edges, spec, grid.values.to(torch.int8))
    return from_rows(rows, w, axis)


def _neighbour_sums(integers: Tensor, axis: int | None) -> Iterator[Tensor]:
    """(channels, ...) int16 sums of all neighbours: those of opposite signs never exceed `LIMIT`.

    Neighbours are next to each other in the orders of `orders`; nothing is put in that order.
    """
    wide = integers.to(torch.int16)
    if axis is None:
        for order in orders(integers, axis):
            row = wide.permute(order).reshape(1, -1)
            yield row[:, 1:] + row[:, :-1]
        return
    rows = wide.movedim(axis, 0)
    if rows.dim() < 3:
        rows = rows.reshape(len(rows), -1)
        yield rows[:, 1:] + rows[:, :-1]
        return
    places = rows.flatten(2)  # (channels, inputs, places of the kernel)
    yield places[:, 1:] + places[:, :-1]
    yield places[:, 0, 1:] + places[:, -1, :-1]  # from one place to the next


def orders(integers: Tensor, axis: int | None) -> Iterator[list[int]]:
    """Orders of the axes in which kernels may walk through a weight: channels first, inputs last.

    One grid per tensor does not say which axis its channels are on: it is either of the first two.
    """
    dims = integers.dim()
    for first in (0, 1)[: min(dims, 2)] if axis is None else (axis,):
        others = [i for i in range(dims) if i != first]
        yield [first, *others[1:], *others[:1]]


def _lowered(rows: Tensor, levels: Tensor, places: int) -> Tensor:
    """Rows (C, K) of integers with what `smaller` says; a new tensor."""
    out = rows.to(levels).clone(memory_format=torch.contiguous_format)
    at, value = smaller(out, levels, places)
    out.view(-1)[at] = value
    return out


def smaller(
    rows: Tensor, levels: Tensor, places: int, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weights that are too large beside a neighbour of their sign, and what they become.

    Training moves few weights at a step, so only pairs that overflow are looked at.

    Args:
        rows: (C, K) contiguous, inputs outermost: integers, or these times the scale.
        levels: (C, L) ascending integers.
        places: see `places_of`.
        scale: (C,), or None.

    Returns:
        Flat indices, some of which come twice, and integers.
    """
    limit = LIMIT + 0.5 if scale is None else (LIMIT + 0.5) * scale.unsqueeze(1)
    length, flat = rows.shape[1], rows.view(-1)
    at = torch.cat(wide_pairs(rows, places, limit))
    channel, place = torch.div(at, length, rounding_mode="floor"), at % length
    last = length - places  # where the last input's weights begin
    # Kernels add all inputs at one place, then those at the next one.
    earlier = torch.where(place >= places, at - places, at + last - 1)
    later = torch.where(place < last, at + places, at - last + 1)
    value = flat[at]
    before = torch.where(place > 0, flat[earlier.clamp(min=0)], 0)
    after = torch.where(place < length - 1, flat[later.clamp(max=len(flat) - 1)], 0)
    if scale is not None:
        step = scale[channel]
        value, before, after = (torch.round(x / step) for x in (value, before, after))
    positive = value > 0
    larger, least = torch.maximum(before, after), -torch.minimum(before, after)
    beside = torch.where(positive, larger, least).clamp_(min=0)  # of the same sign
    room = (LIMIT - beside).clamp_(min=HALF)
    large = value.abs() > room
    at, positive, room = at[large], positive[large], room[large]
    books = levels[channel[large]]
    # The first level above; of negative ones the first above the next smaller integer.
    bound = torch.where(positive, room, -room - 1).unsqueeze(1)
    index = torch.searchsorted(books, bound, right=True).squeeze(1) - positive.long()
    index = index.clamp_(0, levels.shape[1] - 1).unsqueeze(1)
    return at, books.gather(1, index).squeeze(1)


def wide_pairs(rows: Tensor, places: int, limit: float | Tensor) -> tuple[Tensor, Tensor]:
    """Flat indices of the first and the second weight of neighbours whose sum is above a limit.

    Args:
        rows: (C, K), inputs outermost.
        places: see `places_of`.
        limit: of the sum's magnitude, or (C, 1) of each channel's.
    """
    length = rows.shape[1]
    last = length - places
    firsts, seconds = [], []
    for first, second, count in ((0, places, last), (last, 1, places - 1)):
        sums = rows[:, first : first + count] + rows[:, second : second + count]
        channel, place = _beyond(sums, limit)
        start = channel * length + place
        firsts.append(start + first)
        seconds.append(start + second)
    return torch.cat(firsts), torch.cat(seconds)


def _beyond(sums: Tensor, limit: float | Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of magnitudes above a limit."""
    if sums.is_cuda:
        channel, place = (sums.abs_() > limit).nonzero(as_tuple=True)
        return channel, place
    # Ten times as fast as torch's comparison and nonzero.
    bound = limit.numpy() if isinstance(limit, Tensor) else limit
    flat = torch.from_numpy(np.flatnonzero(sums.abs_().numpy() > bound))
    width = max(1, sums.shape[1])
    return torch.div(flat, width, rounding_mode="floor"), flat % width
