"""The Pareto frontier of choices made layer by layer (ZeroQ, Cai et al., CVPR 2020, section 3.2).

Layers are taken to add up: the cost and the divergence of an assignment are the sums of its
layers'. The frontier holds, for every cost, the assignment of least divergence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")

STATES = 4000
"""So many partial assignments are kept after each layer; beyond, near ones of equal cost merge."""


@dataclass(frozen=True)
class Assignment(Generic[T]):
    """Choices for the layers so far.

    Attributes:
        cost: Their sum.
        divergence: Theirs.
        last: The choice for the latest layer; None before the first.
        before: The assignment that it was added to.
    """

    cost: int = 0
    divergence: float = 0.0
    last: T | None = None
    before: Assignment[T] | None = None

    @property
    def choices(self) -> list[T]:
        """One for each layer, in order."""
        choices: list[T] = []
        walk: Assignment[T] | None = self
        while walk is not None and walk.last is not None:
            choices.append(walk.last)
            walk = walk.before
        return choices[::-1]


def pareto_frontier(
    layers: Iterable[Iterable[tuple[int, float, T]]], states: int = STATES
) -> list[Assignment[T]]:
    """The assignments that none beats in both cost and divergence, from the cheapest on.

    Args:
        layers: For each layer its choices: cost, divergence, and what stands for the choice.
        states: See `STATES`.
    """
    front: list[Assignment[T]] = [Assignment()]
    for choices in layers:
        offered = list(choices)
        grown = [
            Assignment(s.cost + cost, s.divergence + divergence, choice, s)
            for s in front
            for cost, divergence, choice in offered
        ]
        front = _thinned(_undominated(grown), states)
    return front


class Costed(Protocol):
    """Anything with a cost and a divergence."""

    @property
    def cost(self) -> int:
        """What a budget limits."""

    @property
    def divergence(self) -> float:
        """What is to be small."""


C = TypeVar("C", bound=Costed)


def best_within(front: Sequence[C], limit: float) -> C | None:
    """The point of least divergence that costs at most so much; None if none does."""
    within = [point for point in front if point.cost <= limit]
    return min(within, key=lambda p: (p.divergence, p.cost), default=None)


def _undominated(states: list[Assignment[T]]) -> list[Assignment[T]]:
    states.sort(key=lambda s: (s.cost, s.divergence))
    front: list[Assignment[T]] = []
    for state in states:
        if not front or state.divergence < front[-1].divergence:
            front.append(state)
    return front


def _thinned(states: list[Assignment[T]], most: int) -> list[Assignment[T]]:
    """About so many, evenly over cost, each the best of its stretch; both ends stay."""
    if len(states) <= most:
        return states
    low, high = states[0].cost, states[-1].cost
    # Costs rise and divergences fall: the last of a stretch is its best.
    best = {(s.cost - low) * (most - 1) // max(1, high - low): s for s in states}
    return _undominated([states[0], *best.values()])
