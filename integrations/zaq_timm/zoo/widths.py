"""Which format each layer gets: by the budget, by its sensitivity, or because it is depthwise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin.ptq import fold_batch_norm
from zaq_plugin.ptq.mixed_precision import (
    Place,
    Point,
    Sensitivity,
    best_within,
    code_bits,
    code_bytes,
    frontier,
    module_places,
    sensitivities_of,
)
from zaq_plugin.pwlq import QuantSpec
from zaq_timm.zoo.hosts import depthwise_overrides
from zaq_timm.zoo.measure import distance, outputs
from zaq_timm.zoo.model_job import Job
from zaq_timm.zoo.quantities import Budget, parse_budget

SENSITIVITY_IMAGES = 16


@dataclass(frozen=True)
class Widths:
    """What was chosen, and by what.

    Attributes:
        overrides: layer name to format, where it is another than asked for.
        numel: number of weights of each layer that was tried.
        sensitivities: what was measured on them.
        points: the Pareto frontier.
        chosen: the point on it that the budget chose.
    """

    overrides: Mapping[str, QuantSpec]
    numel: Mapping[str, int] = field(default_factory=dict)
    sensitivities: Sequence[Sensitivity] = ()
    points: Sequence[Point] = ()
    chosen: Point | None = None

    def mean_bits(self, point: Point) -> float:
        """Stored bits a weight at a point of the frontier."""
        bits = sum(spec.stored_bits * self.numel[name] for name, spec in point.specs.items())
        return bits / sum(self.numel.values())

    @property
    def final(self) -> list[Sensitivity]:
        """Of each layer at its final format."""
        point = self.chosen
        return [s for s in self.sensitivities if point is None or point.specs[s.layer] == s.spec]


def choose_widths(job: Job) -> Widths:
    """Layers that get a format of their own, and what was measured for that.

    Raises:
        ValueError: the budget is below the narrowest widths.
    """
    settings, model = job.settings, job.loaded.model
    fixed: dict[str, QuantSpec] = {}
    if settings.depthwise == "int8":
        fixed = depthwise_overrides(model, job.spec)
    budget = parse_budget(settings.budget)
    if budget is None and not settings.sensitivity:
        return Widths(fixed)
    with job.manifest.stage("sensitivity") as facts:
        folded, places = find_places(model, job.images.calibration[:2].clone())
        images = job.images.calibration[:SENSITIVITY_IMAGES]
        reference = outputs(folded, images, settings.batch)

        def candidates(place: Place) -> list[QuantSpec]:
            if place.name in fixed:
                return [fixed[place.name]]
            return [job.spec] if budget is None else list(job.spec.widths())

        sensitivities = sensitivities_of(
            places,
            candidates,
            lambda: distance(reference, outputs(folded, images, settings.batch)).divergence,
            lambda done: job.report("sensitivity of layers", done, len(places)),
        )
        facts["layers"] = len(places)
        numel = {place.name: place.weight.numel() for place in places}
        if budget is None:
            return Widths(fixed, numel, sensitivities)
        points, chosen = within_budget(sensitivities, budget, _float_numel(folded, places) * 4)
        widths = Widths(chosen.specs, numel, sensitivities, points, chosen)
        facts["frontier"] = len(points)
        facts["stored bits chosen"] = widths.mean_bits(chosen)
    return widths


def within_budget(
    sensitivities: Sequence[Sensitivity], budget: Budget, rest: int
) -> tuple[list[Point], Point]:
    """The frontier, and the point on it of least divergence within a budget.

    Args:
        sensitivities: of every layer in every format, layers in order.
        budget: stored bits a weight, or bytes in all.
        rest: bytes of what stays float.

    Raises:
        ValueError: the budget is below the cheapest assignment.
    """
    points = frontier(sensitivities, code_bits if budget.bits is not None else code_bytes)
    if budget.bits is not None:
        numel = sum({one.layer: one.numel for one in sensitivities}.values())
        limit, unit = budget.bits * numel, "bits"
    else:
        assert budget.size is not None
        limit, unit = budget.size - rest, f"bytes (beside {rest:,} that stay float)"
    best = best_within(points, limit)
    if best is None:
        raise ValueError(
            f"budget: even the narrowest widths take {points[0].cost:,} {unit}, and it allows "
            f"{math.floor(limit):,}; raise it."
        )
    return points, best


def find_places(model: nn.Module, example: Tensor) -> tuple[nn.Module, list[Place]]:
    """A copy of the model with BatchNorm folded, and its layers' weights.

    By torch.export, whose graph holds computed weights as values; where it fails, by modules.
    """
    try:
        return _graph_places(model, example)
    except Exception:  # whatever export meets, modules are there
        folded = fold_batch_norm(model, (example,))
        return folded, module_places(folded)


def _graph_places(model: nn.Module, example: Tensor) -> tuple[nn.Module, list[Place]]:
    from zaq_pt2e.graph import argument, layers
    from zaq_pt2e.rewrites import rewrite

    shapes = ({0: torch.export.Dim.AUTO},)
    graph: Any = torch.export.export(model, (example,), dynamic_shapes=shapes).module()
    rewrite(graph)
    graph = fold_batch_norm(graph)
    places: dict[str, Place] = {}
    for layer in layers(graph):
        source = argument(layer.node, 1)
        if source.op == "get_attr" and layer.name not in places:
            path, _, attribute = str(source.target).rpartition(".")
            owner = graph.get_submodule(path)
            places[layer.name] = Place(layer.name, owner, attribute, layer.ch_axis)
    return graph, list(places.values())


def _float_numel(folded: nn.Module, places: Sequence[Place]) -> int:
    """Number of parameters that no place holds; each tensor counted once."""
    weights = {id(place.weight) for place in places}
    return sum(p.numel() for p in folded.parameters() if id(p) not in weights)
