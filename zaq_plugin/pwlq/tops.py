"""The largest level of each channel's int8 grid, such that no two products overflow 16 bits.

The one with which the weights, and their sum, change least; see `zaq_plugin.pwlq.overflow`. Weights
that lie on a grid already keep it, so that quantizing twice equals once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zaq_plugin.pwlq.base import SMALLEST_CLIP, Format, Grid
from zaq_plugin.pwlq.kernels import BLOCK, codebook_of, look_up, select, to_rows
from zaq_plugin.pwlq.levels import INT8_MAX, build_grid, largest_magnitudes, with_tops
from zaq_plugin.pwlq.overflow import (
    HALF,
    LIMIT,
    integers_of,
    orders,
    places_of,
    wide_pairs,
    worst_pairs,
)

_LOWEST = 0.65
"""Grids coarser than this share of the finest that is allowed are not tried."""
_CHUNK = 1 << 22
"""Levels that the search looks at together."""
_PROBES = 8
"""A channel's largest weights, which tell grids that the channel cannot be on."""
_NEAR = 1e-3
"""How far from an integer, in steps of a grid, a weight on it may be by rounding."""


def solve_tops(w: Tensor, edges: Tensor, spec: Format, axis: int | None) -> Tensor:
    """(channels,) float32 integers up to 127: the largest level of each channel's int8 grid.

    Args:
        w: the weight.
        edges: (sides, channels, n + 1), without a reach.
        spec: a guarded format.
        axis: as for `worst_pairs`.
    """
    w, edges = w.detach().contiguous(), edges.detach().float()
    tops = torch.full((edges.shape[1],), float(INT8_MAX), device=edges.device)
    kept = _tops_of_quantized(w, edges, spec, axis)
    tops = torch.where(kept > 0, kept, tops)
    worst = worst_pairs(integers_of(w, edges, spec, axis), axis)
    wide = ((worst > LIMIT) & (kept == 0)).nonzero().squeeze(1)
    if not len(wide):
        return tops
    some = w if axis is None else w.index_select(axis, wide)
    some_edges, sums = edges[:, wide].contiguous(), worst[wide].float()
    # A level is rounded, so that a sum may be smaller by one than the ratio says.
    some_tops = (INT8_MAX * (LIMIT + 1) / sums).ceil().clamp(max=INT8_MAX)
    if spec.snapped:
        some_tops = _least_change(some, some_edges, spec, axis, some_tops)
    some_tops = _until_allowed(some, some_edges, spec, axis, some_tops)
    return tops.index_copy(0, wide, some_tops)


def _tops_of_quantized(w: Tensor, edges: Tensor, spec: Format, axis: int | None) -> Tensor:
    """(channels,) the largest top whose grid the channel's weights lie on; 0 where there is none.

    A channel that was quantized with a small top may fit the largest on its finest grid, and would
    be quantized anew.
    """
    rows = to_rows(w, axis)
    tried = torch.arange(INT8_MAX, 0, -1, device=w.device, dtype=torch.float32)
    largest = rows.float().abs().topk(min(_PROBES, rows.shape[1])).values
    clip = largest_magnitudes(edges, spec).clamp(min=SMALLEST_CLIP)
    steps = largest.unsqueeze(1) * (tried / clip.unsqueeze(1)).unsqueeze(2)
    possible = ((steps - steps.round()).abs() <= _NEAR).all(2)
    kept = torch.zeros_like(clip)
    while bool(possible.any()):
        some = possible.any(1).nonzero().squeeze(1)
        column = possible[some].long().argmax(1)  # the first: the largest top
        part = w if axis is None else w.index_select(axis, some)
        reached = with_tops(edges[:, some], tried[column])
        grid = build_grid(reached, spec)
        integers = integers_of(part, reached, spec, axis, grid)
        values = (to_rows(integers, axis) * grid.scale.unsqueeze(1)).to(w.dtype)
        fits = (values == to_rows(part, axis)).all(1) & (worst_pairs(integers, axis) <= LIMIT)
        kept[some[fits]] = tried[column[fits]]
        possible[some, column] = False
        possible[some[fits]] = False
    return kept


def _until_allowed(
    w: Tensor, edges: Tensor, spec: Format, axis: int | None, tops: Tensor
) -> Tensor:
    """The same tops where the nearest levels overflow with none of them, else smaller ones."""
    while True:
        integers = integers_of(w, with_tops(edges, tops), spec, axis)
        sums = worst_pairs(integers, axis).float()
        wide = sums > LIMIT
        if not bool(wide.any()):
            return tops
        less = torch.minimum(tops - 1, (tops * (LIMIT + 1) / sums.clamp(min=1)).floor())
        tops = torch.where(wide, less.clamp(min=1), tops)


def _least_change(
    w: Tensor, edges: Tensor, spec: Format, axis: int | None, finest: Tensor
) -> Tensor:
    """Tops with which weights that keep their codes, and each channel's sum of them, change least.

    Only pairs that are wide on the finest grid are looked at: `_until_allowed` finds the others.
    """
    grid, rows = build_grid(edges, spec), to_rows(w, axis)
    book, clip = codebook_of(grid), largest_magnitudes(edges, spec)
    rank = book.rank.to(torch.int16)
    ideals = spec.signed_levels(edges).sort(dim=1).values.unsqueeze(1)
    channels, count = rank.shape
    choice = torch.full_like(finest, float(HALF))
    tried = torch.arange(max(1, int((1 - _LOWEST) * float(finest.max()))), device=w.device)
    # What a few channels need stays in cache.
    step = max(1, min(_CHUNK // (len(tried) * count), BLOCK // rows.shape[1]))
    for start in range(0, channels, step):
        part = slice(start, start + step)
        some = Grid(grid.values[part], grid.thresholds[part], grid.scale[part], grid.integer)
        codes = look_up(rows[part], some, edges[:, part], spec, rank[part])
        pairs = _wide_pairs(codes, book.levels[part], w.shape, axis)
        number, total = _sums_of_codes(codes, rows[part], count)
        tops = finest[part].unsqueeze(1) - tried
        scale = clip[part].unsqueeze(1) / tops.clamp(min=1)
        levels = torch.round(ideals[part] / scale.unsqueeze(2))
        worst = _pair_sums(levels, pairs)
        allowed = (worst <= LIMIT) & (tops >= _LOWEST * finest[part].unsqueeze(1))
        change = _change(levels.double(), scale.double(), number, total)
        best = change.masked_fill(~allowed, torch.inf).argmin(1, keepdim=True)
        chosen = torch.where(allowed.gather(1, best), tops.gather(1, best), float(HALF))
        choice[part] = chosen.squeeze(1)
    return choice


def _sums_of_codes(codes: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(channels, L) float64 how many weights have each code, and their sum."""
    starts = count * torch.arange(len(codes), dtype=torch.int32, device=codes.device)
    flat, size = (codes + starts.unsqueeze(1)).reshape(-1), len(codes) * count
    number = torch.bincount(flat, minlength=size).double()
    total = torch.bincount(flat, rows.reshape(-1).double(), size)
    return number.view(-1, count), total.view(-1, count)


def _change(levels: Tensor, scale: Tensor, number: Tensor, total: Tensor) -> Tensor:
    """(channels, tops) squared change of the weights, and of their sum, but for a constant.

    Args:
        levels: (channels, tops, L) in units of scale, float64 as all others are.
        scale: (channels, tops).
        number, total: (channels, L) of the weights at each level.
    """
    sums = torch.bmm(levels, torch.stack([number, total], 2))
    of_levels, products = scale * sums[..., 0], scale * sums[..., 1]
    squares = torch.bmm(levels.square_(), number.unsqueeze(2)).squeeze(2) * scale.square()
    return squares - 2 * products + (of_levels - total.sum(1, keepdim=True)).square()


def _wide_pairs(
    codes: Tensor, levels: Tensor, shape: torch.Size, axis: int | None
) -> tuple[Tensor, Tensor]:
    """Pairs of codes, channel * L + code each, that are neighbours and nearly wide or wider.

    Args:
        codes: (channels, elements) positions in levels.
        levels: (channels, L).
        shape, axis: of the weight that these are some channels of.
    """
    channels, count = levels.shape
    size = select(levels, codes.int())
    ordered = (
        [(codes, size, places_of(shape, axis))]
        if axis is not None
        else [
            (
                codes.view(shape).permute(order).reshape(1, -1),
                size.view(shape).permute(order).reshape(1, -1),
                1,
            )
            for order in orders(codes.view(shape), axis)
        ]
    )
    found = []
    for own, sizes, places in ordered:
        first, second = wide_pairs(sizes, places, LIMIT - 2.5)
        channel = torch.div(first, own.shape[1], rounding_mode="floor") * count
        flat = own.reshape(-1)
        found.append((channel + flat[first]) * (channels * count) + channel + flat[second])
    keys = torch.unique(torch.cat(found))
    return torch.div(keys, channels * count, rounding_mode="floor"), keys % (channels * count)


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
