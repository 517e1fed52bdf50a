"""From edges (breakpoints and clip) to a channel's levels and decision thresholds."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from zaq_plugin.pwlq.spec import PWLQSpec, QuantSpec, UniformSpec

INT8_MAX = 127
_SMALLEST_CLIP = 1e-30
"""Clips below this are a zero channel: their int8 step would not be a normal float32."""


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


def side_levels(edges: Tensor, spec: QuantSpec) -> Tensor:
    """Positive ideal levels of one side, PWLQ section 3.1: piece l runs from p_l to p_{l+1}.

    Args:
        edges: (..., n + 1) ascending magnitudes, the last one the clip m.

    Returns:
        (..., J): levels without the leading zero. Ascending, but for the overlapping variant,
        whose tail grid j m / K begins again at m / K.
    """
    steps = _steps(spec)
    pairs = _fractions(steps)
    piece = torch.tensor([a for a, _ in pairs], device=edges.device)
    position = torch.tensor([b for _, b in pairs], device=edges.device, dtype=edges.dtype)
    upper = edges[..., piece]
    below = torch.cat([torch.zeros_like(edges[..., :1]), edges[..., :-1]], -1)
    if spec.overlapping:
        below = torch.zeros_like(edges)
    lower = below[..., piece]
    # Written so that position 1 gives the edge itself, exactly.
    return lower * (1 - position) + upper * position


def _steps(spec: QuantSpec) -> tuple[int, ...]:
    if isinstance(spec, PWLQSpec):
        return spec.piece_steps
    return (2**spec.bits - 1,) if spec.symmetry == "one-sided" else (2 ** (spec.bits - 1) - 1,)


def side_grid(edges: Tensor, spec: QuantSpec, step: Tensor | None) -> tuple[Tensor, Tensor]:
    """Levels and thresholds of one side, including the zero level.

    Args:
        edges: (..., n + 1).
        step: (...) the int8 grid's step to snap to, or None for ideal levels.

    Returns:
        Levels (..., J + 1) and thresholds (..., J), both in weight units, or both in units of
        ``step`` (levels) and of half a step (thresholds) when a step is given.
    """
    levels = side_levels(edges, spec)
    if step is not None:
        levels = torch.round(levels / step.unsqueeze(-1))
    levels = torch.cat([torch.zeros_like(levels[..., :1]), levels], -1)
    sums = levels[..., 1:] + levels[..., :-1]
    thresholds = sums if step is not None else sums / 2
    if isinstance(spec, PWLQSpec) and spec.overlapping:
        thresholds = _overlapping_thresholds(thresholds, levels, spec, edges, step)
    return levels, thresholds


def _overlapping_thresholds(
    thresholds: Tensor, levels: Tensor, spec: PWLQSpec, edges: Tensor, step: Tensor | None
) -> Tensor:
    """The center rules up to p, the tail's grid beyond; tail thresholds below p collapse onto p."""
    center = spec.piece_steps[0]
    # r <= p is the center; on the int8 grid the half step above the snapped p still is.
    border = edges[..., 0] if step is None else 2 * levels[..., center] + 1
    tail = torch.maximum(thresholds[..., center + 1 :], border.unsqueeze(-1))
    return torch.cat([thresholds[..., :center], border.unsqueeze(-1), tail], -1)


def int8_scale(edges: Tensor) -> Tensor:
    """(C,) step of the int8 grid: the largest clip of the channel / 127; 1 for a zero channel."""
    clip = edges[..., -1].amax(0)
    return torch.where(clip > _SMALLEST_CLIP, clip / INT8_MAX, torch.ones_like(clip))


def build_grid(edges: Tensor, spec: QuantSpec) -> Grid:
    """The grid of every channel.

    Args:
        edges: (sides, C, n + 1) magnitudes; sides is (positive, negative) for asymmetric specs.
    """
    edges = edges.float()
    if isinstance(spec, UniformSpec):
        return _uniform_grid(edges, spec)
    integer = spec.grid == "int8"
    scale = int8_scale(edges) if integer else torch.ones_like(edges[0, :, 0])
    step = scale if integer else None
    positive, above = side_grid(edges[0], spec, step)
    if spec.symmetry == "one-sided":
        return Grid(positive, above if integer else above[:, :0], scale, integer)
    negative, below = (
        (positive, above) if spec.symmetry == "symmetric" else side_grid(edges[1], spec, step)
    )
    values = torch.cat([-negative.flip(-1), positive[..., 1:]], -1)
    thresholds = torch.cat([-below.flip(-1), above], -1)
    return Grid(values, thresholds if integer else thresholds[:, :0], scale, integer)


def _uniform_grid(edges: Tensor, spec: UniformSpec) -> Grid:
    clip = edges[..., 0]
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
