"""Edges of least squared error for channels whose values follow no bell, or are few.

`zaq_plugin.pwlq.search` starts where the breakpoints of bells lie and reads the error off a
histogram. A channel of one sign, of two bumps or of nine weights has its best edges anywhere, in
valleys that are narrow. Here the starts cover all shapes, and each is improved by Lloyd's
iteration within the format: a level is linear in the widths of the pieces,

    level = sum_l width_l position_l,   position_l in [0, 1] within piece l, 1 beyond it,

so that assigning the values to levels and solving for the widths take turns, and the error never
grows. On the int8 grid the last word has the error of the snapped levels.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from zaq_plugin.pwlq.levels import LONE, PiecewiseLinear, build_grid

POINTS = 512
"""Values of a channel that are looked at: longer ones are summed up by means of neighbours."""

_TAIL = 64
"""Values at either end of a long channel that are looked at one by one."""

_CLIPS = (0.55, 0.7, 0.8, 0.9, 1.0)
_BREAKS = (0.03, 0.07, 0.12, 0.18, 0.25, 0.33, 0.42, 0.52, 0.62, 0.72, 0.8, 0.87, 0.93, 0.97)
_FEWER_BREAKS = (0.06, 0.15, 0.3, 0.5, 0.7, 0.85, 0.94)
_PARTS = (0.0, 0.03, 0.08, 0.16, 0.3, 0.5, 0.7, 0.9)
_ENDS = (0.8, 0.93, 0.98, 1.0)
"""Breakpoints and clips at these quantiles of a side's values: bumps may lie anywhere."""

_KEPT = 24
"""Starts that are improved, per side and channel."""

_ROUNDS = 10
_PAIRED = 6
"""Candidates per side that are tried with those of the other side."""

_SINGLE = 16
"""Candidates that are tried where there is one side."""

_SAME = 1e-5
"""Relative difference of errors below which two candidates are the same."""

_DESCENTS = 4
_MOVES = (0.03, 0.012, 0.005, 0.002, 0.0008)
"""Shares by which an edge is moved to meet the int8 grid better."""

_THINNEST = 1e-4
"""Width of a piece, as a share of the range: one of none would never get values."""

_BLOCK_ELEMENTS = 1 << 21


class Points(NamedTuple):
    """What stands for the values of R channels: (R, M) values and their shares, of sum 1."""

    value: Tensor
    share: Tensor


def points_of(rows: Tensor) -> Points:
    """All values of short channels; of long ones the ends, and means of neighbours between them.

    Args:
        rows: (R, K).
    """
    length = rows.shape[1]
    if length <= POINTS:
        return Points(rows, torch.full_like(rows, 1.0 / length))
    ordered = rows.sort(1).values
    inner = ordered[:, _TAIL:-_TAIL]
    groups = POINTS - 2 * _TAIL
    bounds = torch.linspace(0, inner.shape[1], groups + 1, device=rows.device).round().long()
    total = torch.nn.functional.pad(inner.double().cumsum(1), (1, 0))
    count = (bounds[1:] - bounds[:-1]).clamp(min=1)
    means = ((total[:, bounds[1:]] - total[:, bounds[:-1]]) / count).to(rows.dtype)
    share = torch.cat([count.new_ones(_TAIL), bounds[1:] - bounds[:-1], count.new_ones(_TAIL)])
    value = torch.cat([ordered[:, :_TAIL], means, ordered[:, -_TAIL:]], 1)
    return Points(value, (share / length).to(rows.dtype).expand_as(value))


def grid_error(points: Points, edges: Tensor, spec: PiecewiseLinear) -> Tensor:
    """(R, Q) mean squared error of candidate grids, snapped where the format snaps.

    Args:
        points: of R channels.
        edges: (sides, R, Q, n + 1).
        spec: the format, not overlapping.
    """
    channels, queries = edges.shape[1:3]
    grid = build_grid(edges.flatten(1, 2), spec)
    levels = grid.values * grid.scale.unsqueeze(1)
    value = points.value.repeat_interleave(queries, 0)
    nearest = torch.searchsorted(((levels[:, 1:] + levels[:, :-1]) / 2).contiguous(), value)
    error = (levels.gather(1, nearest) - value).square_().view(channels, queries, -1)
    return (error @ points.share.unsqueeze(-1)).squeeze(-1)


def _positions(value: Tensor, widths: Tensor, counts: list[int]) -> Tensor:
    """(R, Q, n + 1, M): where the nearest level of each value lies within each piece."""
    start = torch.zeros_like(widths[..., :1])
    value = value.unsqueeze(1)
    positions = []
    for piece, count in enumerate(counts):
        width = widths[..., piece : piece + 1]
        positions.append(((value - start) * (count / width)).round_().clamp_(0, count) / count)
        start = start + width
    return torch.stack(positions, 2)


def _lloyd(points: Points, widths: Tensor, counts: list[int], rounds: int) -> tuple[Tensor, Tensor]:
    """Improve widths (R, Q, n + 1) of one side; also their error (R, Q) on ideal levels."""
    floor = _THINNEST * points.value.amax(1).clamp(min=1e-30).view(-1, 1, 1)
    widths = widths.clamp(min=floor)
    share = points.share.view(len(points.share), 1, 1, -1)
    value = points.value.unsqueeze(1).unsqueeze(-1)
    for _ in range(rounds):
        position = _positions(points.value, widths, counts)
        weighted = position * share
        gram = weighted @ position.transpose(-1, -2)
        target = (weighted @ value).squeeze(-1)
        for piece in (*range(len(counts)), *range(len(counts))):
            own = gram[..., piece, piece]
            rest = (gram[..., piece, :] * widths).sum(-1) - own * widths[..., piece]
            solved = (target[..., piece] - rest) / own.clamp(min=1e-30)
            solved = torch.where(own > 0, solved, widths[..., piece])
            solved = torch.maximum(solved, floor[..., 0])
            widths = widths.clone()
            widths[..., piece] = solved
    position = _positions(points.value, widths, counts)
    level = (widths.unsqueeze(-2) @ position).squeeze(-2)
    error = (level - points.value.unsqueeze(1)).square_() @ points.share.unsqueeze(-1)
    return widths, error.squeeze(-1)


def _take(error: Tensor, values: Tensor, count: int) -> Tensor:
    """The candidates of least error; error (R, Q), values (R, Q, n + 1) -> (R, count, n + 1).

    Starts that led to one and the same place, as their equal errors tell, come last.
    """
    count = min(count, error.shape[1])
    ordered, index = error.sort(1)
    same = ordered[:, 1:] - ordered[:, :-1] <= _SAME * ordered[:, 1:]
    ordered[:, 1:] = ordered[:, 1:].masked_fill(same, torch.inf)
    best = index.gather(1, ordered.topk(count, 1, largest=False).indices)
    return values.gather(1, best.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def side_candidates(points: Points, counts: list[int], start: Tensor, count: int) -> Tensor:
    """Good edges of one side by themselves, (R, count, n + 1).

    Args:
        points: magnitudes of the side; zeros elsewhere.
        counts: steps of each piece.
        start: (R, n + 1) edges to start from, too.
        count: how many.
    """
    breaks = _BREAKS if len(counts) < 3 else _FEWER_BREAKS
    shapes = [
        [clip * p for p in (*chosen, 1.0)]
        for clip in _CLIPS
        for chosen in itertools.combinations(breaks, len(counts) - 1)
    ]
    ratios = torch.tensor(shapes, device=start.device)
    starts = points.value.amax(1).view(-1, 1, 1) * ratios
    starts = torch.cat([start.unsqueeze(1), starts, _at_quantiles(points, len(counts) - 1)], 1)
    widths = torch.diff(starts, dim=-1, prepend=torch.zeros_like(starts[..., :1]))
    widths, error = _lloyd(points, widths, counts, 0)
    widths = _take(error, widths, _KEPT)
    widths, error = _lloyd(points, widths, counts, _ROUNDS)
    edges = _take(error, widths.cumsum(-1), count)
    return edges * (points.value.amax(1) > 0).view(-1, 1, 1)


def _at_quantiles(points: Points, breakpoints: int) -> Tensor:
    """(R, Q, n + 1) edges at quantiles of the values that are not zero."""
    value, order = points.value.sort(1)
    share = points.share.gather(1, order) * (value > 0)
    below = share.cumsum(1) / share.sum(1, keepdim=True).clamp(min=1e-30)
    quantiles = torch.tensor([*_PARTS, *_ENDS], device=value.device).expand(len(value), -1)
    index = torch.searchsorted(below, quantiles.clamp(1e-6, 1 - 1e-6).contiguous())
    edges = value.gather(1, index.clamp(max=value.shape[1] - 1))
    shapes = [
        [*chosen, len(_PARTS) + end]
        for chosen in itertools.combinations(range(len(_PARTS)), breakpoints)
        for end in range(len(_ENDS))
    ]
    return edges[:, torch.tensor(shapes, device=value.device)].cummax(-1).values


def _descend(points: Points, edges: Tensor, spec: PiecewiseLinear) -> tuple[Tensor, Tensor]:
    """The best of candidates (sides, R, Q, n + 1) on the grid itself, moved to lie better there.

    Returns:
        (sides, R, n + 1) and its error (R,).
    """
    error = grid_error(points, edges, spec)
    best = error.topk(min(_DESCENTS, error.shape[1]), 1, largest=False)
    error, index = best.values, best.indices.view(1, *best.indices.shape, 1)
    edges = edges.gather(2, index.expand(edges.shape[0], -1, -1, edges.shape[-1]))
    if spec.grid == "int8":
        for move in _MOVES:
            for side, piece in itertools.product(range(edges.shape[0]), range(edges.shape[-1])):
                edges, error = _move(points, edges, error, spec, (side, piece, move))
    winner = error.argmin(1, keepdim=True)
    index = winner.view(1, -1, 1, 1).expand(edges.shape[0], -1, -1, edges.shape[-1])
    return edges.gather(2, index).squeeze(2), error.gather(1, winner).squeeze(1)


def _move(
    points: Points, edges: Tensor, error: Tensor, spec: PiecewiseLinear, at: tuple[int, int, float]
) -> tuple[Tensor, Tensor]:
    """Move one edge of all candidates by a share, where that helps."""
    side, piece, move = at
    factors = torch.tensor([-2 * move, -move, 0.0, move, 2 * move], device=edges.device) + 1
    trial = edges.unsqueeze(3).repeat(1, 1, 1, len(factors), 1)  # (sides, R, Q, moves, n + 1)
    trial[side, ..., piece] *= factors
    trial = trial.cummax(-1).values
    tried = grid_error(points, trial.flatten(2, 3), spec).view(*error.shape, -1)
    tried[..., len(factors) // 2] = error
    error, best = tried.min(-1)
    index = best.view(1, *best.shape, 1, 1).expand(edges.shape[0], -1, -1, 1, edges.shape[-1])
    return trial.gather(3, index).squeeze(3), error


def refine_edges(rows: Tensor, start: Tensor, spec: PiecewiseLinear) -> Tensor:
    """Edges of least squared error found from starts of all shapes, (sides, R, n + 1).

    Args:
        rows: (R, K) float32 values.
        start: (sides, R, n + 1) edges that were found already, one more start.
        spec: the format; not overlapping.
    """
    starts = _KEPT * (spec.breakpoints + 1) * 4
    block = max(1, _BLOCK_ELEMENTS // (min(rows.shape[1], POINTS) * starts))
    parts = [
        _refine_block(points_of(rows[i : i + block]), start[:, i : i + block], spec)
        for i in range(0, rows.shape[0], block)
    ]
    return torch.cat(parts, 1)


def _refine_block(points: Points, start: Tensor, spec: PiecewiseLinear) -> Tensor:
    steps = list(spec.piece_steps)
    if spec.symmetry == "symmetric":
        sides = [Points(points.value.abs(), points.share)]
    else:
        signs = (1, -1)[: spec.sides]
        sides = [Points((sign * points.value).clamp(min=0), points.share) for sign in signs]
    number = _SINGLE if len(sides) == 1 else _PAIRED
    candidates = [side_candidates(p, steps, k, number) for p, k in zip(sides, start, strict=True)]
    if len(sides) == 1:
        return _descend(points, candidates[0].unsqueeze(0), spec)[0]
    one, other = (f.shape[1] for f in candidates)
    first, second = candidates[0].repeat_interleave(other, 1), candidates[1].repeat(1, one, 1)
    best, error = _descend(points, torch.stack([first, second]), spec)
    doubled = [LONE * count for count in steps]
    for side in (0, 1):
        # All codes for one sign pay where the other sign's values are hardly there.
        dropped = (sides[1 - side].value.square() * sides[1 - side].share).sum(1)
        rows = (dropped < error).nonzero().squeeze(1)
        if not len(rows):
            continue
        part = Points(sides[side].value[rows], sides[side].share[rows])
        alone = side_candidates(part, doubled, start[side, rows], _SINGLE)
        trial = torch.zeros(2, *alone.shape, device=alone.device)
        trial[side] = alone
        whole = Points(points.value[rows], points.share[rows])
        edges, reached = _descend(whole, trial, spec)
        better = reached < error[rows]
        best[:, rows[better]], error[rows[better]] = edges[:, better], reached[better]
    return best
