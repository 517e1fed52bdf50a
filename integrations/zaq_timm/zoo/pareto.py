"""Widths for all layers under a budget, on ZeroQ's Pareto frontier."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zaq_plugin.ptq.mixed_precision import STATES, pareto_frontier
from zaq_plugin.ptq.mixed_precision import best_within as frontier_within
from zaq_plugin.pwlq import QuantSpec
from zaq_timm.zoo.sensitivity import Sensitivity


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


def code_bits(one: Sensitivity) -> int:
    """Cost by stored bits: the width of every code, summed over the weights."""
    return one.spec.stored_bits * one.numel


def code_bytes(one: Sensitivity) -> int:
    """Cost by size: codes and levels."""
    return one.size


def frontier(
    sensitivities: Sequence[Sensitivity],
    cost: Callable[[Sensitivity], int],
    states: int = STATES,
) -> list[Point]:
    """The assignments that none beats in both cost and divergence, from the cheapest on.

    Args:
        sensitivities: of every layer in every format, layers in order.
        cost: `code_bits` or `code_bytes`.
        states: see `pareto_frontier`.

    Raises:
        ValueError: no layers.
    """
    if not sensitivities:
        raise ValueError("frontier: no layer has a sensitivity, so there is nothing to choose.")
    by_layer: dict[str, list[Sensitivity]] = {}
    for one in sensitivities:
        by_layer.setdefault(one.layer, []).append(one)
    layers = [[(cost(c), c.divergence, c) for c in choices] for choices in by_layer.values()]
    return [
        Point(assignment.cost, assignment.divergence, {c.layer: c.spec for c in assignment.choices})
        for assignment in pareto_frontier(layers, states)
    ]


def best_within(points: Sequence[Point], limit: float, unit: str) -> Point:
    """The point of least divergence within a budget.

    Raises:
        ValueError: the budget is below the cheapest assignment.
    """
    best = frontier_within(points, limit)
    if best is None:
        raise ValueError(
            f"budget: even the narrowest widths take {points[0].cost:,} {unit}, and it allows "
            f"{math.floor(limit):,}; raise it."
        )
    return best
