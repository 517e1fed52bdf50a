"""Clip and breakpoints of least squared error on the values themselves.

`search` is the paper's three-stage coarse-to-fine search over p/m with m = max|w|. `joint` moves
the clip as well; measured on real weights it gains more than any choice of breakpoint alone. Each
side of an asymmetric grid is a problem of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from zaq_plugin.pwlq.kernels import look_up
from zaq_plugin.pwlq.levels import INT8_MAX, PiecewiseLinear, build_grid, side_grid
from zaq_plugin.pwlq.moments import Moments, mean_squared_error, measure
from zaq_plugin.pwlq.refine import refine_edges

BINS = 512
BLOCK_ELEMENTS = 1 << 20
_CLIP_RATIOS = (0.3, 0.42, 0.54, 0.66, 0.78, 0.9, 1.0)
_UNIFORM_CLIP_RATIOS = tuple(0.04 * i for i in range(5, 26))
_BREAK_RATIOS = (0.06, 0.1, 0.14, 0.19, 0.25, 0.32, 0.42, 0.55)
_TEMPLATES = {
    2: ((0.12, 0.35), (0.2, 0.5), (0.3, 0.63)),
    3: ((0.08, 0.2, 0.45), (0.15, 0.32, 0.6), (0.22, 0.46, 0.72)),
}
_SEARCH_STAGES = ((0.05, 10), (0.01, 5), (0.002, 5))
"""(step of p/m, reach in steps) of the paper's three stages."""
_FLOOR = 0.02
FEW_WEIGHTS = 25
"""Channels this short (depthwise kernels) are refined: so few values make no histogram."""

_FAR_CLIPS = (0.4, 0.55, 0.7, 0.85, 1.0)
_FAR_BREAKS = (0.64, 0.75, 0.84, 0.91, 0.96)
_FAR_TEMPLATES = {1: (1.0,), 2: (0.8, 1.0), 3: (0.7, 0.85, 1.0)}
"""Breakpoints where bells have none: a channel for which one of these is good is refined."""

_PROMISE = 1.1
"""Share of the error found so far that a coarse trial may have for that."""

LEAST_GAIN = 1e-3
"""Share of the error that refined edges must save to replace those found before."""

_ORDINARY = (1e-12, 1e12)
"""Between these the search computes with the weights as they are."""


def side_values(rows: Tensor, spec: PiecewiseLinear) -> list[Tensor]:
    """What each side of the grid has to represent: magnitudes, (C, K) each, zeros elsewhere."""
    if spec.symmetry == "asymmetric":
        return [rows.clamp(min=0), (-rows).clamp_(min=0)]
    if spec.symmetry == "one-sided":
        return [rows.clamp(min=0)]
    return [rows.abs()]


def _candidate_error(
    moments: Moments, clip: Tensor, ratios: Tensor, spec: PiecewiseLinear
) -> Tensor:
    """Error of (C, Q) candidates; ratios (C, Q, n + 1): clip / max and breakpoints / clip."""
    m = clip.unsqueeze(1) * ratios[..., 0]
    edges = torch.cat([m.unsqueeze(-1) * ratios[..., 1:], m.unsqueeze(-1)], -1)
    step = m.clamp(min=1e-30) / INT8_MAX if spec.snapped else None
    levels, thresholds = side_grid(edges, spec, step)
    overlapping = spec.overlapping
    if step is not None:
        levels = levels * step.unsqueeze(-1)
        thresholds = thresholds * (step / 2).unsqueeze(-1)
    return mean_squared_error(moments, levels, thresholds if overlapping else None)


def _take_best(error: Tensor, ratios: Tensor) -> tuple[Tensor, Tensor]:
    best = error.argmin(1, keepdim=True)
    chosen = torch.gather(ratios, 1, best.unsqueeze(-1).expand(-1, -1, ratios.shape[-1]))
    return torch.gather(error, 1, best), chosen


def _valid(ratios: Tensor) -> Tensor:
    """Keep clip ratios in (0, 1] and breakpoint ratios ascending within (0, 1)."""
    ratios = ratios.clamp(_FLOOR, 1.0)
    if ratios.shape[-1] > 1:
        breaks = ratios[..., 1:].clamp(max=0.95).cummax(-1).values
        ratios = torch.cat([ratios[..., :1], breaks], -1)
    return ratios


def _refine(
    best: Tensor,
    error: Tensor,
    coordinates: range,
    steps: tuple[float, ...],
    evaluate: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Coordinate descent with shrinking steps; best (C, 1, n + 1), error (C, 1)."""
    for step in steps:
        for index in coordinates:
            moves = torch.zeros(4, best.shape[-1], dtype=best.dtype, device=best.device)
            moves[:, index] = torch.tensor([-step, -step / 2, step / 2, step])
            candidates = torch.cat([best, _valid(best + moves)], 1)
            errors = torch.cat([error, evaluate(candidates[:, 1:])], 1)
            error, best = _take_best(errors, candidates)
    return best, error


class _Side(NamedTuple):
    """What a search found for one side: edges (C, n + 1), and for a joint search, (C,) each:

    Attributes:
        error: mean squared error on this side.
        energy: mean square of its values, the error without any level.
        elsewhere: whether breakpoints far out promise less error.
    """

    edges: Tensor
    error: Tensor
    energy: Tensor
    elsewhere: Tensor


def _search_side(values: Tensor, spec: PiecewiseLinear, joint: bool) -> _Side:
    clip = values.amax(1)
    dtype = torch.float64 if spec.bits > 5 else torch.float32
    moments = measure(values, torch.zeros_like(clip), clip, BINS, dtype)

    def evaluate(ratios: Tensor) -> Tensor:
        return _candidate_error(moments, clip, ratios, spec)

    count = spec.breakpoints
    if count == 1 and not joint:
        chosen = _three_stages(evaluate, values)[:, 0]
        return _Side(_edges(clip, chosen), clip, clip, clip > clip)
    clips = (_CLIP_RATIOS if count else _UNIFORM_CLIP_RATIOS) if joint else (1.0,)
    breaks: tuple[tuple[float, ...], ...]
    if count == 0:
        breaks = ((),)
    elif count == 1:
        breaks = tuple((ratio,) for ratio in _BREAK_RATIOS)
    else:
        breaks = _TEMPLATES[count]
    start = torch.tensor(
        [(m, *p) for m, p in itertools.product(clips, breaks)], device=values.device
    )
    candidates = start.unsqueeze(0).expand(values.shape[0], -1, -1)
    error, best = _take_best(evaluate(candidates), candidates)
    coordinates = range(0 if joint else 1, count + 1)
    steps = (0.05, 0.02, 0.008, 0.003) if count < 2 else (0.08, 0.05, 0.03, 0.02, 0.01, 0.004)
    best, error = _refine(best, error, coordinates, steps, evaluate)
    elsewhere = clip > clip
    if joint and _refinable(spec):
        far = torch.tensor(list(itertools.product(_FAR_CLIPS, _FAR_BREAKS)), device=values.device)
        far = torch.cat([far[:, :1], *[far[:, 1:] * r for r in _FAR_TEMPLATES[count]]], 1)
        candidates = far.unsqueeze(0).expand(values.shape[0], -1, -1)
        elsewhere = evaluate(candidates).amin(1) < _PROMISE * error[:, 0]
    return _Side(_edges(clip, best[:, 0]), error[:, 0], moments.square, elsewhere)


def _three_stages(evaluate: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """The paper's coarse-to-fine search over p / m in (0, m/2], with m = max|w|; (C, 1, 2)."""
    best = torch.zeros(values.shape[0], 1, 2, device=values.device)
    best[..., 0] = 1.0
    for step, reach in _SEARCH_STAGES:
        offsets = torch.arange(1 - reach, reach, device=values.device) * step
        if step == _SEARCH_STAGES[0][0]:
            offsets = torch.arange(1, reach + 1, device=values.device) * step
        candidates = best.repeat(1, len(offsets), 1)
        candidates[..., 1] = (candidates[..., 1] + offsets).clamp(_SEARCH_STAGES[-1][0], 0.5)
        _, best = _take_best(evaluate(candidates), candidates)
    return best


def _edges(clip: Tensor, chosen: Tensor) -> Tensor:
    """Ratios (C, n + 1) in absolute units, the clip moved to the end."""
    edge = clip * chosen[:, 0]
    return torch.cat([edge.unsqueeze(1) * chosen[:, 1:], edge.unsqueeze(1)], 1)


def search_edges(rows: Tensor, spec: PiecewiseLinear, *, joint: bool) -> Tensor:
    """Edges of least squared error, (sides, C, n + 1), for rows (C, K).

    Args:
        joint: move the clip too; otherwise the clip is max|w|.
    """

    def search(part: Tensor) -> Tensor:
        sides = [_search_side(v, spec, joint) for v in side_values(part, spec)]
        edges = torch.stack([side.edges for side in sides])
        if joint and _refinable(spec):
            edges = refined(part, edges, _odd(sides, part.shape[1]), spec)
        return edges

    return in_blocks(rows, search)


def search_range(rows: Tensor, spec: PiecewiseLinear) -> Tensor:
    """Both ends (2, C, 1) of uniform asymmetric grids, with least squared error."""
    return in_blocks(rows, lambda part: _search_uniform_range(part, spec))


def in_blocks(rows: Tensor, search: Callable[[Tensor], Tensor]) -> Tensor:
    """Edges (sides, C, E) of rows (C, K), some channels at a time, and scaled where float32 ends.

    Args:
        rows: any float dtype.
        search: from float32 rows whose squares float32 can hold to their edges.
    """
    block = max(1, BLOCK_ELEMENTS // max(rows.shape[1], 16 * BINS))
    parts = []
    for start in range(0, rows.shape[0], block):
        part, factor = _ordinary(rows[start : start + block].float())
        parts.append(search(part) * factor)
    return torch.cat(parts, 1)


def _ordinary(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows whose squares float32 can hold, and the powers of two (C, 1) that they were divided by.

    Powers of two are exact: edges of ordinary channels (factor 1) stay the same to the last bit.
    """
    largest = torch.maximum(rows.amax(1), -rows.amin(1))
    low, high = _ORDINARY
    extreme = ((largest < low) | (largest > high)) & (largest > 0)
    exponent = torch.where(extreme, largest.log2().floor(), torch.zeros_like(largest))
    factor = torch.exp2(exponent).unsqueeze(1)
    return (rows / factor if bool(extreme.any()) else rows), factor


def _refinable(spec: PiecewiseLinear) -> bool:
    return spec.breakpoints > 0 and not spec.overlapping


def _odd(sides: list[_Side], length: int) -> Tensor:
    """(C,) channels of few weights, (nearly) of one sign, or of no bell: to be refined."""
    odd = torch.stack([side.elsewhere for side in sides]).any(0) | (length <= FEW_WEIGHTS)
    if len(sides) == 2:
        error = sides[0].error + sides[1].error
        odd |= torch.minimum(sides[0].energy, sides[1].energy) <= error
    return odd


def refined(rows: Tensor, edges: Tensor, odd: Tensor, spec: PiecewiseLinear) -> Tensor:
    """Edges with those of the channels that are ``odd`` (C,) refined, where that pays."""
    index = (odd & rows.any(1)).nonzero().squeeze(1)
    if not len(index):
        return edges
    part, start = rows[index], edges[:, index]
    trial = refine_edges(part, start, spec)
    better = _error(part, trial, spec) < (1 - LEAST_GAIN) * _error(part, start, spec)
    edges = edges.clone()
    edges[:, index[better]] = trial[:, better]
    return edges


def _error(rows: Tensor, edges: Tensor, spec: PiecewiseLinear) -> Tensor:
    """(C,) squared error of the values themselves, float64."""
    grid = build_grid(edges, spec)
    levels = grid.values * grid.scale.unsqueeze(1)
    return (look_up(rows, grid, edges, spec, levels).double() - rows).square_().sum(1)


def _search_uniform_range(rows: Tensor, spec: PiecewiseLinear) -> Tensor:
    """Both ends of a uniform asymmetric grid, searched together: they share one step."""
    low, high = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
    dtype = torch.float64 if spec.bits > 5 else torch.float32
    moments = measure(rows, low, high, 2 * BINS, dtype)

    def edges(ratios: Tensor) -> Tensor:
        positive = high.unsqueeze(1) * ratios[..., 0]
        negative = -low.unsqueeze(1) * ratios[..., 1]
        return torch.stack([positive, negative])

    def evaluate(ratios: Tensor) -> Tensor:
        both = edges(ratios)
        flat = both.reshape(2, -1, 1)
        grid = build_grid(flat, spec)
        levels = grid.values * grid.scale.unsqueeze(1)
        return mean_squared_error(moments, levels.view(rows.shape[0], -1, spec.num_levels))

    grid = torch.tensor(list(itertools.product((0.4, 0.6, 0.8, 1.0), repeat=2)))
    candidates = grid.to(rows.device).unsqueeze(0).expand(rows.shape[0], -1, -1)
    error, best = _take_best(evaluate(candidates), candidates)
    for step in (0.1, 0.05, 0.02, 0.01):
        for index in (0, 1):
            moves = torch.zeros(4, 2, device=rows.device)
            moves[:, index] = torch.tensor([-step, -step / 2, step / 2, step])
            candidates = torch.cat([best, (best + moves).clamp(_FLOOR, 1.0)], 1)
            errors = torch.cat([error, evaluate(candidates[:, 1:])], 1)
            error, best = _take_best(errors, candidates)
    return edges(best)
