"""From edges (breakpoints and clip) to a channel's levels and decision thresholds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from zaq_plugin.pwlq.base import INT8_MAX, SMALLEST_CLIP, Format, Grid

LONE = 2
"""Times as many steps as usual has a side whose other side is empty: it takes both sides' codes."""


class PiecewiseLinear(Format):
    """Formats whose levels are evenly spaced between edges: PWLQ, and uniform ones of one piece."""

    @property
    @abstractmethod
    def piece_steps(self) -> tuple[int, ...]:
        """Grid steps of each piece of one side, from the center outwards."""

    def limits(self, edges: Tensor) -> tuple[Tensor, Tensor]:
        """From the clip of the negative side to that of the positive one."""
        return self._range(without_tops(edges, self)[..., -1:])

    def _range(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        high = clip[0]
        if self.symmetry == "asymmetric":
            return -clip[1], high
        return (torch.zeros_like(high) if self.symmetry == "one-sided" else -high), high

    def signed_levels(self, edges: Tensor) -> Tensor:
        """See `Format.signed_levels`."""

        def of(side: int, times: int) -> Tensor:
            levels = side_levels(edges[side], self, times)
            return torch.cat([torch.zeros_like(levels[..., :1]), levels], -1)

        return _both_signs(edges, self, of, zero=True)


@cache
def _fractions(steps: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Pieces, and positions within the pieces, of the positive levels of one side."""
    pieces = [piece for piece, count in enumerate(steps) for _ in range(count)]
    return tuple(pieces), tuple(j / count for count in steps for j in range(1, count + 1))


def lone_sides(edges: Tensor, spec: Format) -> Tensor:
    """(sides, C) bool: sides of an asymmetric PWLQ grid that take the codes of an empty other side.

    A channel of one sign leaves the other side empty (its clip is 0). That side's codes halve the
    steps of the side in use: the levels that this would have by itself all remain.

    Args:
        edges: (sides, C, n + 1).
    """
    used = edges[..., -1] > 0
    if not spec.shares_codes:
        return torch.zeros_like(used)
    return used & ~used.flip(0)


def side_levels(edges: Tensor, spec: PiecewiseLinear, times: int = 1) -> Tensor:
    """Positive ideal levels of one side, PWLQ section 3.1: piece l runs from p_l to p_{l+1}.

    Args:
        edges: (..., n + 1) ascending magnitudes, the last one the clip m.
        spec: the format.
        times: how many times the usual number of steps each piece has; `LONE` for a lone side.

    Returns:
        (..., J): levels without the leading zero. Ascending, but for the overlapping variant,
        whose tail grid j m / K begins again at m / K.
    """
    steps = tuple(times * count for count in spec.piece_steps)
    pieces, positions = _fractions(steps)
    piece = torch.tensor(pieces, device=edges.device)
    position = torch.tensor(positions, device=edges.device, dtype=edges.dtype)
    upper = edges.index_select(-1, piece)
    below = torch.cat([torch.zeros_like(edges[..., :1]), edges[..., :-1]], -1)
    if spec.overlapping:
        below = torch.zeros_like(edges)
    lower = below.index_select(-1, piece)
    # Written so that position 1 gives the edge itself, exactly.
    return lower * (1 - position) + upper * position


def _both_signs(
    edges: Tensor, spec: PiecewiseLinear, of: Callable[[int, int], Tensor], zero: bool
) -> Tensor:
    """Put the sides of each channel together, (C, ...).

    Args:
        edges: (sides, C, n + 1).
        spec: the format.
        of: magnitudes of a side, with that many times the usual steps, ascending.
        zero: whether the first magnitude is the zero that both sides share.
    """
    positive = of(0, 1)
    if spec.symmetry == "one-sided":
        return positive
    negative = positive if spec.symmetry == "symmetric" else of(1, 1)
    joined = torch.cat([-negative.flip(-1), positive[..., 1:] if zero else positive], -1)
    if not spec.shares_codes:
        return joined
    alone = lone_sides(edges, spec).unsqueeze(-1)
    joined = torch.where(alone[0], of(0, LONE), joined)
    return torch.where(alone[1], -of(1, LONE).flip(-1), joined)


def side_grid(
    edges: Tensor, spec: PiecewiseLinear, step: Tensor | None, times: int = 1
) -> tuple[Tensor, Tensor]:
    """Levels and thresholds of one side, including the zero level.

    Args:
        edges: (..., n + 1).
        spec: the format.
        step: (...) the int8 grid's step to snap to, or None for ideal levels.
        times: see `side_levels`.

    Returns:
        Levels (..., J + 1) and thresholds (..., J), both in weight units, or both in units of
        ``step`` (levels) and of half a step (thresholds) when a step is given.
    """
    levels = side_levels(edges, spec, times)
    if step is not None:
        levels = torch.round(levels / step.unsqueeze(-1))
    levels = torch.cat([torch.zeros_like(levels[..., :1]), levels], -1)
    sums = levels[..., 1:] + levels[..., :-1]
    thresholds = sums if step is not None else sums / 2
    if spec.overlapping:
        thresholds = _overlapping_thresholds(
            thresholds, levels, times * spec.piece_steps[0], edges, step
        )
    return levels, thresholds


def _overlapping_thresholds(
    thresholds: Tensor, levels: Tensor, center: int, edges: Tensor, step: Tensor | None
) -> Tensor:
    """The center rules up to p, the tail's grid beyond; tail thresholds below p collapse onto p."""
    # r <= p is the center; on the int8 grid the half step above the snapped p still is.
    border = edges[..., 0] if step is None else 2 * levels[..., center] + 1
    tail = torch.maximum(thresholds[..., center + 1 :], border.unsqueeze(-1))
    return torch.cat([thresholds[..., :center], border.unsqueeze(-1), tail], -1)


def without_tops(edges: Tensor, spec: Format) -> Tensor:
    """(sides, C, n + 1): breakpoints and clip of edges with or without a reach."""
    return edges[..., : spec.edge_count]


def with_tops(edges: Tensor, tops: Tensor) -> Tensor:
    """Edges (sides, C, n + 1) with the reach of an int8 grid whose largest levels are tops (C,).

    Returns:
        (sides, C, n + 2), differentiable; see `zaq_plugin.pwlq.overflow`.
    """
    reach = torch.maximum(edges[..., -1], -edges[..., 0]) * (INT8_MAX / tops).to(edges)
    return torch.cat([edges, reach.unsqueeze(-1)], -1)


def largest_magnitudes(edges: Tensor, spec: Format) -> Tensor:
    """(C,) magnitude of each channel's largest level: the last edge, or a negative first one."""
    return torch.maximum(edges[..., spec.edge_count - 1], -edges[..., 0]).amax(0)


def tops_of(edges: Tensor, spec: Format) -> Tensor:
    """(C,) the int8 grid's largest level: an integer below 127 where edges have a reach beyond."""
    clip = largest_magnitudes(edges, spec)
    reach = clip if edges.shape[-1] == spec.edge_count else edges[..., -1].amax(0)
    tops = torch.round(INT8_MAX * (clip / reach)).clamp(1, INT8_MAX)
    return torch.where(clip > SMALLEST_CLIP, tops, torch.full_like(clip, INT8_MAX))


def int8_scale(edges: Tensor, spec: Format) -> Tensor:
    """(C,) step of the int8 grid: the channel's largest clip / its top; 1 for a zero channel."""
    clip = largest_magnitudes(edges, spec)
    return torch.where(clip > SMALLEST_CLIP, clip / tops_of(edges, spec), torch.ones_like(clip))


def build_grid(edges: Tensor, spec: Format) -> Grid:
    """The grid of every channel.

    Args:
        edges: (sides, C, n + 1); sides is (positive, negative) for asymmetric specs. One column
            more is the grid's reach, see `zaq_plugin.pwlq.overflow`.
    """
    return spec.levels_at(edges.float())


def piecewise_grid(edges: Tensor, spec: PiecewiseLinear) -> Grid:
    """The grid of pieces whose edges are clip and breakpoints; snapped where it is int8."""
    integer = spec.grid == "int8"
    scale = int8_scale(edges, spec) if integer else torch.ones_like(edges[0, :, 0])
    step = scale if integer else None
    values = _both_signs(edges, spec, lambda s, n: side_grid(edges[s], spec, step, n)[0], zero=True)
    if not integer:
        return Grid(values, values[:, :0], scale, integer)
    if not spec.overlapping:
        return Grid(values, values[:, 1:] + values[:, :-1], scale, integer)
    cuts = _both_signs(edges, spec, lambda s, n: side_grid(edges[s], spec, step, n)[1], zero=False)
    return Grid(values, cuts, scale, integer)
