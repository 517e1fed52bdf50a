"""Widths for all layers under a budget: ZeroQ's Pareto frontier, by dynamic programming.

Layers are taken to add up: the divergence of an assignment is the sum of its layers' (Cai et al.,
CVPR 2020, section 3.2). The frontier holds, for every cost, the assignment of least divergence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zaq_plugin.pwlq import QuantSpec
from zaq_timm.zoo.sensitivity import Sensitivity

STATES = 4000
"""So many partial assignments are kept after each layer; beyond, near ones of equal cost merge."""


@dataclass(frozen=True)
class Point:
    """An assignment on the frontier.

    Attributes:
        cost: bits of all codes, or bytes.
        divergence: sum of the layers'.
        specs: layer name to format.
    """

    cost: int
    divergence: float
    specs: dict[str, QuantSpec]


@dataclass(frozen=True)
class _State:
    cost: int
    divergence: float
    last: Sensitivity | None = None
    before: _State | None = None


def code_bits(one: Sensitivity) -> int:
    """Cost by stored bits: the width of every code, summed over the weights."""
    return one.spec.stored_bits * one.numel


def code_bytes(one: Sensitivity) -> int:
    """Cost by size: codes and levels."""
    return one.size


def frontier(
    sensitivities: Sequence[Sensitivity], cost: Callable[[Sensitivity], int]
) -> list[Point]:
    """The assignments that none beats in both cost and divergence, from the cheapest on.

    Args:
        sensitivities: of every layer in every format, layers in order.
        cost: `code_bits` or `code_bytes`.

    Raises:
        ValueError: no layers.
    """
    if not sensitivities:
        raise ValueError("frontier: no layer has a sensitivity, so there is nothing to choose.")
    by_layer: dict[str, list[Sensitivity]] = {}
    for one in sensitivities:
        by_layer.setdefault(one.layer, []).append(one)
    states = [_State(0, 0.0)]
    for choices in by_layer.values():
        grown = [
            _State(s.cost + cost(c), s.divergence + c.divergence, c, s)
            for s in states
            for c in choices
        ]
        states = _thinned(_undominated(grown))
    return [_point(state) for state in states]


def best_within(points: Sequence[Point], limit: float, unit: str) -> Point:
    """The point of least divergence within a budget.

    Raises:
        ValueError: the budget is below the cheapest assignment.
    """
    within = [p for p in points if p.cost <= limit]
    if not within:
        raise ValueError(
            f"budget: even the narrowest widths take {points[0].cost:,} {unit}, and it allows "
            f"{math.floor(limit):,}; raise it."
        )
    return min(within, key=lambda p: (p.divergence, p.cost))


def _undominated(states: list[_State]) -> list[_State]:
    states.sort(key=lambda s: (s.cost, s.divergence))
    kept: list[_State] = []
    for state in states:
        if not kept or state.divergence < kept[-1].divergence:
            kept.append(state)
    return kept


def _thinned(states: list[_State]) -> list[_State]:
    """At most `STATES`, evenly over cost; both ends stay."""
    if len(states) <= STATES:
        return states
    low, high = states[0].cost, states[-1].cost
    best: dict[int, _State] = {}
    for state in states:  # costs rise and divergences fall: the last in a bin is its best
        best[(state.cost - low) * (STATES - 1) // max(1, high - low)] = state
    best[-1] = states[0]
    return [best[key] for key in sorted(best)]


def _point(state: _State) -> Point:
    specs: dict[str, QuantSpec] = {}
    walk: _State | None = state
    while walk is not None and walk.last is not None:
        specs[walk.last.layer] = walk.last.spec
        walk = walk.before
    return Point(state.cost, state.divergence, dict(reversed(specs.items())))
