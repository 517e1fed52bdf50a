"""Levels with which no two products overflow 16 bits, on any processor.

Int8 kernels of processors without VNNI (AVX2's and AVX-512's ``vpmaddubsw``) add two products of an
activation (0 to 255) and a weight (-127 to 127) in 16 bits, which saturate, silently: 255 * (127 +
127) is 64,770 and becomes 32,767. Nothing is lost where the magnitudes of two neighbouring weights
of one sign add up to at most `LIMIT`. Formats with ``overflow="pairs"`` keep to that:

* *The grid.* A channel whose neighbours would add up to more is put on a coarser int8 grid: its
  largest level is not 127 but an integer below, its *top*. `solve_tops` chooses it once, for the
  weights whose edges were solved: the one with which the weights, and their sum, change least.
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

from collections.abc import Iterator

import torch
from torch import Tensor

from zaq_plugin.pwlq.kernels import codebook_of, look_up
from zaq_plugin.pwlq.layout import channels_of, from_rows, to_rows
from zaq_plugin.pwlq.levels import INT8_MAX, Grid, build_grid, signed_levels, with_tops
from zaq_plugin.pwlq.spec import PWLQSpec, QuantSpec

LIMIT = (2**15 - 1) // 255
"""The largest sum of two weights whose products with 255 fit in 16 bits: 128."""

_HALF = LIMIT // 2
_LOWEST = 0.65
"""Grids coarser than this share of the finest that is allowed are not tried."""
_CHUNK = 1 << 22
"""Levels that the search looks at together."""


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


def guarded(integers: Tensor, edges: Tensor, spec: QuantSpec, axis: int | None) -> Tensor:
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
    made = integers.clone()
    some = made if axis is None else made.index_select(axis, wide)
    books = _reachable(edges[:, wide], spec)
    for order in _orders(some, axis):
        moved = some.permute(order)
        rows = moved.reshape(len(wide), -1)
        moved.copy_(_lowered(rows, books).reshape(moved.shape))
    return some if axis is None else made.index_copy_(axis, wide, some)


def solve_tops(w: Tensor, edges: Tensor, spec: QuantSpec, axis: int | None) -> Tensor:
    """(channels,) float32 integers up to 127: the largest level of each channel's int8 grid.

    Args:
        w: the weight.
        edges: (sides, channels, n + 1), without a reach.
        spec: a guarded format.
        axis: as for `worst_pairs`.
    """
    w, edges = w.detach().contiguous(), edges.detach().float()
    tops = torch.full((edges.shape[1],), float(INT8_MAX), device=edges.device)
    worst = worst_pairs(integers_of(w, edges, spec, axis), axis)
    wide = (worst > LIMIT).nonzero().squeeze(1)
    if not len(wide):
        return tops
    some = w if axis is None else w.index_select(axis, wide)
    known, sums = edges[:, wide].contiguous(), worst[wide].float()
    # A level is rounded, so that a sum may be smaller by one than the ratio says.
    found = (INT8_MAX * (LIMIT + 1) / sums).ceil().clamp(max=INT8_MAX)
    if isinstance(spec, PWLQSpec):
        found = _least_change(some, known, spec, axis, found)
    found = _until_allowed(some, known, spec, axis, found)
    return tops.index_copy(0, wide, found)


def _reachable(edges: Tensor, spec: QuantSpec) -> Tensor:
    """(channels, L) ascending levels that values are rounded to.

    The overlapping variant's tail has levels in the center, which no value takes; in their place is
    the next smaller one that values do.
    """
    grid = build_grid(edges, spec)
    levels = codebook_of(grid).levels
    if not spec.overlapping:
        return levels
    values = levels * grid.scale.unsqueeze(1)
    taken = look_up(values, grid, edges, spec, grid.values) == levels
    above = torch.where(taken, levels, 0.0).clamp(min=0).cummax(1).values
    below = torch.where(taken, levels, 0.0).clamp(max=0).flip(1).cummin(1).values.flip(1)
    return torch.where(levels > 0, above, below)


def integers_of(
    w: Tensor, edges: Tensor, spec: QuantSpec, axis: int | None, grid: Grid | None = None
) -> Tensor:
    """The levels nearest to a weight, int8 in units of the grid's step; w's shape; unguarded."""
    grid = grid or build_grid(edges, spec)
    rows = look_up(to_rows(w, axis), grid, edges, spec, grid.values.to(torch.int8))
    return from_rows(rows, w, axis)


def _neighbour_sums(integers: Tensor, axis: int | None) -> Iterator[Tensor]:
    """(channels, ...) int16 sums of all neighbours: those of opposite signs never exceed `LIMIT`.

    Neighbours are next to each other in the orders of `_orders`; nothing is put in that order.
    """
    wide = integers.to(torch.int16)
    if axis is None:
        for order in _orders(integers, axis):
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


def _orders(integers: Tensor, axis: int | None) -> Iterator[list[int]]:
    """Orders of the axes in which kernels may walk through a weight: channels first, inputs last.

    One grid per tensor does not say which axis its channels are on: it is either of the first two.
    """
    dims = integers.dim()
    for first in (0, 1)[: min(dims, 2)] if axis is None else (axis,):
        others = [i for i in range(dims) if i != first]
        yield [first, *others[1:], *others[:1]]


def _lowered(rows: Tensor, levels: Tensor) -> Tensor:
    """Rows (C, K) in the kernel's order, no two neighbours of one sign above `LIMIT` together.

    Args:
        rows: int8.
        levels: (C, L) ascending.
    """
    rows = rows.to(torch.int16)
    size = rows.abs()
    beside = torch.zeros_like(rows)  # the larger neighbour of the same sign
    for one, other in ((slice(1, None), slice(-1)), (slice(-1), slice(1, None))):
        same = rows[:, one] * rows[:, other] > 0
        part = beside[:, one]
        part.copy_(torch.maximum(part, torch.where(same, size[:, other], 0)))
    room = (LIMIT - beside).clamp_(min=_HALF)
    channel, place = (size > room).nonzero(as_tuple=True)
    books, limit = levels[channel], room[channel, place].to(levels).unsqueeze(1)
    high = (torch.searchsorted(books, limit, right=True) - 1).clamp(min=0)
    low = torch.searchsorted(books, -limit).clamp(max=levels.shape[1] - 1)
    index = torch.where(rows[channel, place].unsqueeze(1) > 0, high, low)
    made = rows.clone()
    made[channel, place] = books.gather(1, index).squeeze(1).to(made.dtype)
    return made


def _until_allowed(
    w: Tensor, edges: Tensor, spec: QuantSpec, axis: int | None, tops: Tensor
) -> Tensor:
    """The same tops where the nearest levels overflow with none of them, else smaller ones."""
    while True:
        made = integers_of(w, with_tops(edges, tops), spec, axis)
        sums = worst_pairs(made, axis).float()
        wide = sums > LIMIT
        if not bool(wide.any()):
            return tops
        less = torch.minimum(tops - 1, (tops * (LIMIT + 1) / sums.clamp(min=1)).floor())
        tops = torch.where(wide, less.clamp(min=1), tops)


def _least_change(
    w: Tensor, edges: Tensor, spec: PWLQSpec, axis: int | None, finest: Tensor
) -> Tensor:
    """Tops with which weights that keep their codes, and each channel's sum of them, change least.

    Only pairs that are wide on the finest grid are looked at: `_until_allowed` finds the others.
    """
    grid = build_grid(edges, spec)
    book = codebook_of(grid)
    rows = to_rows(w, axis)
    codes = look_up(rows, grid, edges, spec, book.rank)
    channels, count = book.levels.shape
    flat = (codes + torch.arange(channels, device=codes.device).unsqueeze(1) * count).reshape(-1)
    size = channels * count
    number = torch.bincount(flat, minlength=size).view(channels, count).double()
    total = torch.bincount(flat, rows.reshape(-1).double(), size).view(channels, count)
    first, second = _wide_pairs(from_rows(flat.view_as(codes), w, axis), book.levels, axis)
    found = torch.full_like(finest, float(_HALF))
    tried = torch.arange(max(1, int((1 - _LOWEST) * float(finest.max()))), device=w.device)
    ideal = signed_levels(edges, spec).sort(dim=1).values.unsqueeze(1)
    clip = edges[..., -1].amax(0)
    step = max(1, _CHUNK // (len(tried) * count))
    for start in range(0, channels, step):
        part = slice(start, min(start + step, channels))
        inside = (first >= start * count) & (first < part.stop * count)
        pairs = first[inside] - start * count, second[inside] - start * count
        tops = finest[part].unsqueeze(1) - tried
        scale = (clip[part].unsqueeze(1) / tops.clamp(min=1)).unsqueeze(2)
        levels = torch.round(ideal[part] / scale)
        worst = _pair_sums(levels, pairs)
        allowed = (worst <= LIMIT) & (tops >= _LOWEST * finest[part].unsqueeze(1))
        values = levels.double() * scale
        n, s = number[part].unsqueeze(1), total[part].unsqueeze(1)
        change = (n * values.square() - 2 * s * values).sum(2)
        change += ((n * values).sum(2) - s.sum(2)).square()
        best = change.masked_fill(~allowed, torch.inf).argmin(1, keepdim=True)
        chosen = torch.where(allowed.gather(1, best), tops.gather(1, best), float(_HALF))
        found[part] = chosen.squeeze(1)
    return found


def _wide_pairs(flat: Tensor, levels: Tensor, axis: int | None) -> tuple[Tensor, Tensor]:
    """Pairs of codes, channel * L + code each, that are neighbours and nearly wide or wider."""
    size = levels.reshape(-1)
    firsts, seconds = [], []
    for order in _orders(flat, axis):
        rows = flat.permute(order).reshape(levels.shape[0], -1)
        values = size[rows]
        wide = (values[:, 1:] + values[:, :-1]).abs_() >= LIMIT - 2
        firsts.append(rows[:, 1:][wide])
        seconds.append(rows[:, :-1][wide])
    first, second = torch.cat(firsts), torch.cat(seconds)
    keys = torch.unique(first * len(size) + second)
    return torch.div(keys, len(size), rounding_mode="floor"), keys % len(size)


def _pair_sums(levels: Tensor, pairs: tuple[Tensor, Tensor]) -> Tensor:
    """(channels, tops) the largest sum of two magnitudes, of the pairs of codes given.

    Args:
        levels: (channels, tops, L).
        pairs: channel * L + code, each.
    """
    channels, tried, count = levels.shape
    size = levels.abs().transpose(1, 2).reshape(channels * count, tried)
    sums = size[pairs[0]] + size[pairs[1]]
    where = torch.div(pairs[0], count, rounding_mode="floor").unsqueeze(1).expand_as(sums)
    worst = torch.zeros(channels, tried, dtype=sums.dtype, device=sums.device)
    return worst.scatter_reduce(0, where, sums, "amax")
