"""From edges (breakpoints and clip) to a channel's levels and decision thresholds."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from zaq_plugin.pwlq.spec import PWLQSpec, QuantSpec, UniformSpec

INT8_MAX = 127
_SMALLEST_CLIP = 1e-30
"""Clips below this are a zero channel: their int8 step would not be a normal float32."""
LONE = 2
"""Times as many steps as usual has a side whose other side is empty: it takes both sides' codes."""


class Grid(NamedTuple):
    """The levels of every channel and how values find theirs.

    Attributes:
        values: (C, J) level of each decision interval, from the most negative interval upwards:
            integers (float32 tensor) in units of scale on the int8 grid, else levels in weight
            units.
        thresholds: (C, J - 1), not descending, in half steps (integers) on the int8 grid; the float
            grid finds its levels by the paper's formula and has none, shape (C, 0).
        scale: (C,) the int8 grid's step; ones on the float grid.
        integer: whether values are integers in units of scale.
    """

    values: Tensor
    thresholds: Tensor
    scale: Tensor
    integer: bool


def _fractions(steps: tuple[int, ...]) -> tuple[tuple[int, float], ...]:
    """(piece, position within the piece) of each positive level of one side."""
    return tuple(
        (piece, j / count) for piece, count in enumerate(steps) for j in range(1, count + 1)
    )


def lone_sides(edges: Tensor, spec: QuantSpec) -> Tensor:
    """(sides, C) bool: sides of an asymmetric PWLQ grid that take the codes of an empty other side.

    A channel of one sign leaves the other side empty (its clip is 0). That side's codes halve the
    steps of the side in use: the levels that this would have by itself all remain.

    Args:
        edges: (sides, C, n + 1).
    """
    used = edges[..., -1] > 0
    if not isinstance(spec, PWLQSpec) or spec.symmetry != "asymmetric":
        return torch.zeros_like(used)
    return used & ~used.flip(0)


def side_levels(edges: Tensor, spec: QuantSpec, times: int = 1) -> Tensor:
    """Positive ideal levels of one side, PWLQ section 3.1: piece l runs from p_l to p_{l+1}.

    Args:
        edges: (..., n + 1) ascending magnitudes, the last one the clip m.
        spec: the format.
        times: how many times the usual number of steps each piece has; `LONE` for a lone side.

    Returns:
        (..., J): levels without the leading zero. Ascending, but for the overlapping variant,
        whose tail grid j m / K begins again at m / K.
    """
    steps = tuple(times * count for count in _steps(spec))
    pairs = _fractions(steps)
    piece = torch.tensor([a for a, _ in pairs], device=edges.device)
    position = torch.tensor([b for _, b in pairs], device=edges.device, dtype=edges.dtype)
    upper = edges.index_select(-1, piece)
    below = torch.cat([torch.zeros_like(edges[..., :1]), edges[..., :-1]], -1)
    if spec.overlapping:
        below = torch.zeros_like(edges)
    lower = below.index_select(-1, piece)
    # Written so that position 1 gives the edge itself, exactly.
    return lower * (1 - position) + upper * position


def _steps(spec: QuantSpec) -> tuple[int, ...]:
    if isinstance(spec, PWLQSpec):
        return spec.piece_steps
    return (2**spec.bits - 1,) if spec.symmetry == "one-sided" else (2 ** (spec.bits - 1) - 1,)


def signed_levels(edges: Tensor, spec: QuantSpec) -> Tensor:
    """(C, L) ideal levels of both signs in the order of `Grid.values`, differentiable in the edges.

    Args:
        edges: (sides, C, n + 1).
    """

    def of(side: int, times: int) -> Tensor:
        levels = side_levels(edges[side], spec, times)
        return torch.cat([torch.zeros_like(levels[..., :1]), levels], -1)

    return _both_signs(edges, spec, of, zero=True)


def _both_signs(
    edges: Tensor, spec: QuantSpec, of: Callable[[int, int], Tensor], zero: bool
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
    if not isinstance(spec, PWLQSpec) or spec.symmetry != "asymmetric":
        return joined
    alone = lone_sides(edges, spec).unsqueeze(-1)
    joined = torch.where(alone[0], of(0, LONE), joined)
    return torch.where(alone[1], -of(1, LONE).flip(-1), joined)


def side_grid(
    edges: Tensor, spec: QuantSpec, step: Tensor | None, times: int = 1
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
    if isinstance(spec, PWLQSpec) and spec.overlapping:
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


def without_tops(edges: Tensor, spec: QuantSpec) -> Tensor:
    """(sides, C, n + 1): breakpoints and clip of edges with or without a reach."""
    return edges[..., : spec.breakpoints + 1]


def with_tops(edges: Tensor, tops: Tensor) -> Tensor:
    """Edges (sides, C, n + 1) with the reach of an int8 grid whose largest levels are tops (C,).

    Returns:
        (sides, C, n + 2), differentiable; see `zaq_plugin.pwlq.overflow`.
    """
    reach = edges[..., -1] * (INT8_MAX / tops).to(edges)
    return torch.cat([edges, reach.unsqueeze(-1)], -1)


def tops_of(edges: Tensor, spec: QuantSpec) -> Tensor:
    """(C,) the int8 grid's largest level: an integer below 127 where edges have a reach beyond."""
    clip, reach = edges[..., spec.breakpoints].amax(0), edges[..., -1].amax(0)
    tops = torch.round(INT8_MAX * (clip / reach)).clamp(1, INT8_MAX)
    return torch.where(clip > _SMALLEST_CLIP, tops, torch.full_like(clip, INT8_MAX))


def int8_scale(edges: Tensor, spec: QuantSpec) -> Tensor:
    """(C,) step of the int8 grid: the channel's largest clip / its top; 1 for a zero channel."""
    clip = edges[..., spec.breakpoints].amax(0)
    return torch.where(clip > _SMALLEST_CLIP, clip / tops_of(edges, spec), torch.ones_like(clip))


def build_grid(edges: Tensor, spec: QuantSpec) -> Grid:
    """The grid of every channel.

    Args:
        edges: (sides, C, n + 1) magnitudes; sides is (positive, negative) for asymmetric specs. One
            column more is the grid's reach, see `zaq_plugin.pwlq.overflow`.
    """
    edges = edges.float()
    if isinstance(spec, UniformSpec):
        return _uniform_grid(edges, spec)
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


def _uniform_grid(edges: Tensor, spec: UniformSpec) -> Grid:
    clip = edges[..., -1]  # the reach, where there is one: a coarser grid is one that goes further
    count = spec.num_levels - 1
    width = clip.sum(0) if spec.symmetry == "asymmetric" else clip[0]
    if spec.symmetry == "symmetric":
        width = 2 * width
    scale = torch.where(width > _SMALLEST_CLIP, width / count, torch.ones_like(width))
    if spec.symmetry == "asymmetric":
        offset = torch.round(clip[1] / scale)
    else:
        offset = torch.full_like(scale, count / 2 if spec.symmetry == "symmetric" else 0.0)
    ladder = torch.arange(count + 1, device=edges.device, dtype=edges.dtype)
    values = ladder - offset.unsqueeze(-1)
    return Grid(values, values[:, 1:] + values[:, :-1], scale, True)
