"""Widths for all layers under a budget: sensitivities, and the Pareto frontier of their choices.

ZeroQ (Cai et al., CVPR 2020, section 3.2).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from zaq_plugin.layers import LAYERS, channel_axis
from zaq_plugin.ptq.output_distance import divergences
from zaq_plugin.ptq.plan import trace_order
from zaq_plugin.pwlq import QuantSpec, fake_quantize
from zaq_plugin.student.modes import evaluating

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


Adapter = Callable[[object], list[Tensor]]


@dataclass
class Sensitivities:
    """What each layer costs at each width.

    Attributes:
        divergence: Layer name to width to mean KL divergence of the outputs.
        numel: Number of weights of each layer.
        inputs: Layers that take the network's input.
    """

    divergence: dict[str, dict[int, float]] = field(default_factory=dict)
    numel: dict[str, int] = field(default_factory=dict)
    inputs: set[str] = field(default_factory=set)


def kl_divergence(teacher: list[Tensor], student: list[Tensor]) -> float:
    """Mean KL divergence over samples and positions, classes on axis 1, averaged over outputs.

    An output with one channel counts by its squared error, see `output_distance`.
    """
    pairs = zip(teacher, student, strict=True)
    each = [divergences(t.double(), s.double()).mean() for t, s in pairs]
    return float(torch.stack(each).mean())


def kl_sensitivity(
    model: nn.Module, specs: Mapping[int, QuantSpec], images: Tensor, *, adapter: Adapter
) -> Sensitivities:
    """Divergence from the float model with one layer's weight alone quantized (equation 6).

    Args:
        model: BatchNorm folded, float; it is not touched.
        specs: Width in stored bits to grid.
        images: (n, C, H, W).
        adapter: From the model's output to tensors.

    Raises:
        ValueError: If the model has no convolution or linear layer.
    """
    model = copy.deepcopy(model)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, LAYERS)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no convolution or linear layer to measure")
    sensitivities = Sensitivities()

    def measured() -> float:
        return kl_divergence(target, adapter(model(images.clone())))

    with evaluating(model):
        target = adapter(model(images.clone()))
        order, sensitivities.inputs = trace_order(model, layers, (images[:1].clone(),), {})
        for name in order:
            weight = layers[name].weight
            assert isinstance(weight, nn.Parameter)
            sensitivities.numel[name] = weight.numel()
            axis = channel_axis(layers[name])
            apart = each_alone(weight, axis, specs.values(), measured)
            sensitivities.divergence[name] = dict(zip(specs, apart, strict=True))
    return sensitivities


@torch.no_grad()
def each_alone(
    weight: Tensor, axis: int, specs: Iterable[QuantSpec], measured: Callable[[], float]
) -> list[float]:
    """What is measured with one weight on each of several grids, all others as they are.

    Args:
        weight: Of a model; it changes meanwhile and comes back.
        axis: Of its output channels.
        specs: The grids.
        measured: Runs the model.
    """
    original, measurements = weight.detach().clone(), []
    try:
        for spec in specs:
            weight.copy_(fake_quantize(original, spec, axis))
            measurements.append(measured())
    finally:
        weight.copy_(original)
    return measurements


def allocate_widths(
    sensitivities: Sensitivities, bits: float, states: int = STATES
) -> dict[str, int]:
    """The widths of least summed divergence whose mean over the weights is at most ``bits``.

    Dynamic programming; see `pareto_frontier`.

    Raises:
        ValueError: If even the narrowest widths are too wide.
    """
    limit = round(bits * sum(sensitivities.numel.values()))
    layers = [
        [
            (width * sensitivities.numel[name], divergence, width)
            for width, divergence in choices.items()
        ]
        for name, choices in sensitivities.divergence.items()
    ]
    front = pareto_frontier(layers, states)
    best = best_within(front, limit)
    if best is None:
        raise ValueError(
            f"no widths fit a mean of {bits:g} stored bits: the narrowest take "
            f"{front[0].cost / sum(sensitivities.numel.values()):.2f}"
        )
    return dict(zip(sensitivities.divergence, best.choices, strict=True))
