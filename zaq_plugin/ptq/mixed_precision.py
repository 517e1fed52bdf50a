"""Widths for all layers under a budget: sensitivities, and the Pareto frontier of their choices.

ZeroQ (Cai et al., CVPR 2020, section 3.2): how much a layer minds a format is the divergence of the
outputs when it alone is quantized,

    Ω_i(k) = mean KL( softmax M(x) || softmax M(x; layer i at width k) )

over synthetic images x (equation 4). Layers are taken to add up: the cost and the divergence of an
assignment are the sums of its layers'. The frontier holds, for every cost, the assignment of least
divergence.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zaq_plugin.graph import attribute_at
from zaq_plugin.layers import LAYERS, channel_axis
from zaq_plugin.ptq.output_distance import divergences
from zaq_plugin.ptq.plan import stored_size, trace_order
from zaq_plugin.pwlq import QuantSpec, fake_quantize
from zaq_plugin.student.modes import evaluating

Adapter = Callable[[object], list[Tensor]]

STATES = 4000
"""So many partial assignments are kept after each layer; beyond, near ones of equal cost merge."""


# ---- sensitivities ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A layer's weight, where it can be replaced.

    Attributes:
        name: The layer's.
        owner, attribute: The module that holds the tensor, and its name there.
        axis: Of the output channels.
    """

    name: str
    owner: nn.Module
    attribute: str
    axis: int

    @property
    def weight(self) -> Tensor:
        """The weight itself."""
        value = attribute_at(self.owner, self.attribute)
        assert isinstance(value, Tensor)
        return value

    def size(self, spec: QuantSpec) -> int:
        """Bytes of the weight on a grid, levels included."""
        return stored_size(self.weight.numel(), self.weight.shape[self.axis], spec)


@dataclass(frozen=True)
class Sensitivity:
    """What one layer at one format does to the outputs.

    Attributes:
        layer: Its name.
        spec: The format.
        numel: Number of weights.
        size: Their bytes in this format, levels included.
        divergence: Ω, in nats.
    """

    layer: str
    spec: QuantSpec
    numel: int
    size: int
    divergence: float


def module_places(model: nn.Module) -> list[Place]:
    """The weights of a model's convolutions and linear layers, which are modules."""
    return [
        Place(name, module, "weight", channel_axis(module))
        for name, module in model.named_modules()
        if isinstance(module, LAYERS)
    ]


def sensitivities_of(
    places: Sequence[Place],
    candidates: Callable[[Place], Sequence[QuantSpec]],
    measured: Callable[[], float],
    report: Callable[[int], None] = lambda _: None,
) -> list[Sensitivity]:
    """Each layer in each of its formats, one at a time; all others as they are.

    Args:
        places: Layers of a model; their weights change meanwhile and come back.
        candidates: The formats of a layer.
        measured: Runs the model, and says how far its outputs are from the float ones.
        report: Told how many layers are done.
    """
    sensitivities = []
    for index, place in enumerate(places):
        specs, numel = candidates(place), place.weight.numel()
        for spec, apart in zip(specs, _each_alone(place, specs, measured), strict=True):
            sensitivities.append(Sensitivity(place.name, spec, numel, place.size(spec), apart))
        report(index + 1)
    return sensitivities


@torch.no_grad()
def _each_alone(
    place: Place, specs: Iterable[QuantSpec], measured: Callable[[], float]
) -> list[float]:
    """What is measured with one weight on each of several grids, all others as they are."""
    weight = place.weight
    original, measurements = weight.detach().clone(), []
    try:
        for spec in specs:
            weight.copy_(fake_quantize(original, spec, place.axis))
            measurements.append(measured())
    finally:
        weight.copy_(original)
    return measurements


def kl_divergence(teacher: list[Tensor], student: list[Tensor]) -> float:
    """Mean KL divergence over samples and positions, classes on axis 1, averaged over outputs.

    An output with one channel counts by its squared error, see `output_distance`.
    """
    pairs = zip(teacher, student, strict=True)
    each = [divergences(t.double(), s.double()).mean() for t, s in pairs]
    return float(torch.stack(each).mean())


def kl_sensitivities(
    model: nn.Module, specs: Sequence[QuantSpec], images: Tensor, *, adapter: Adapter
) -> tuple[list[Sensitivity], set[str]]:
    """Divergence from the float model with one layer's weight alone quantized.

    Args:
        model: BatchNorm folded, float; it is not touched.
        specs: The formats of every layer.
        images: (n, C, H, W).
        adapter: From the model's output to tensors.

    Returns:
        The sensitivities, layers in order of execution, and the layers that take the network's
        input.

    Raises:
        ValueError: If the model has no convolution or linear layer.
    """
    model = copy.deepcopy(model)
    places = {place.name: place for place in module_places(model)}
    if not places:
        raise ValueError(f"{type(model).__name__} has no convolution or linear layer to measure")

    def measured() -> float:
        return kl_divergence(target, adapter(model(images.clone())))

    with evaluating(model):
        target = adapter(model(images.clone()))
        layers = {name: place.owner for name, place in places.items()}
        order, inputs = trace_order(model, layers, (images[:1].clone(),), {})
        return sensitivities_of([places[n] for n in order], lambda _: specs, measured), inputs


# ---- the frontier ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """An assignment on the frontier.

    Attributes:
        cost: Bits of all codes, or bytes.
        divergence: Sum of the layers'.
        specs: Layer name to format.
    """

    cost: int
    divergence: float
    specs: Mapping[str, QuantSpec]


def code_bits(one: Sensitivity) -> int:
    """Cost by stored bits: the width of every code, summed over the weights."""
    return one.spec.stored_bits * one.numel


def code_bytes(one: Sensitivity) -> int:
    """Cost by size: codes and levels."""
    return one.size


def frontier(
    sensitivities: Iterable[Sensitivity], cost: Callable[[Sensitivity], int], states: int = STATES
) -> list[Point]:
    """The assignments that none beats in both cost and divergence, from the cheapest on.

    Dynamic programming, layer after layer.

    Args:
        sensitivities: Of every layer in every format, layers in order.
        cost: `code_bits` or `code_bytes`.
        states: See `STATES`.

    Raises:
        ValueError: No layers.
    """
    by_layer: dict[str, list[Sensitivity]] = {}
    for one in sensitivities:
        by_layer.setdefault(one.layer, []).append(one)
    if not by_layer:
        raise ValueError("frontier: no layer has a sensitivity, so there is nothing to choose.")
    front = [_Assignment()]
    for choices in by_layer.values():
        grown = [
            _Assignment(s.cost + cost(c), s.divergence + c.divergence, c, s)
            for s in front
            for c in choices
        ]
        front = _thinned(_undominated(grown), states)
    return [Point(s.cost, s.divergence, s.specs) for s in front]


def best_within(points: Sequence[Point], limit: float) -> Point | None:
    """The point of least divergence that costs at most so much; None if none does."""
    within = [point for point in points if point.cost <= limit]
    return min(within, key=lambda p: (p.divergence, p.cost), default=None)


def allocate_widths(
    sensitivities: Sequence[Sensitivity], bits: float, states: int = STATES
) -> dict[str, QuantSpec]:
    """The formats of least summed divergence whose mean over the weights is at most ``bits``.

    Raises:
        ValueError: If even the narrowest widths are too wide.
    """
    numel = sum({one.layer: one.numel for one in sensitivities}.values())
    points = frontier(sensitivities, code_bits, states)
    best = best_within(points, round(bits * numel))
    if best is None:
        raise ValueError(
            f"no widths fit a mean of {bits:g} stored bits: the narrowest take "
            f"{points[0].cost / numel:.2f}"
        )
    return dict(best.specs)


@dataclass(frozen=True)
class _Assignment:
    """Choices for the layers so far: their sums, the latest, and what it was added to."""

    cost: int = 0
    divergence: float = 0.0
    last: Sensitivity | None = None
    before: _Assignment | None = None

    @property
    def specs(self) -> dict[str, QuantSpec]:
        """Layer name to format, layers in order."""
        chosen: list[Sensitivity] = []
        walk: _Assignment | None = self
        while walk is not None and walk.last is not None:
            chosen.append(walk.last)
            walk = walk.before
        return {one.layer: one.spec for one in reversed(chosen)}


def _undominated(states: list[_Assignment]) -> list[_Assignment]:
    states.sort(key=lambda s: (s.cost, s.divergence))
    front: list[_Assignment] = []
    for state in states:
        if not front or state.divergence < front[-1].divergence:
            front.append(state)
    return front


def _thinned(states: list[_Assignment], most: int) -> list[_Assignment]:
    """About so many, evenly over cost, each the best of its stretch; both ends stay."""
    if len(states) <= most:
        return states
    low, high = states[0].cost, states[-1].cost
    # Costs rise and divergences fall: the last of a stretch is its best.
    best = {(s.cost - low) * (most - 1) // max(1, high - low): s for s in states}
    return _undominated([states[0], *best.values()])
