"""How much each layer minds being quantized: the divergence when it alone is (ZeroQ, section 3.2).

    Ω_i(k) = mean KL( softmax M(x) || softmax M(x; layer i at width k) )

over synthetic images x (Cai et al., CVPR 2020, equation 4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin.layers import LAYERS, channel_axis
from zaq_plugin.ptq import fold_batch_norm
from zaq_plugin.ptq.mixed_precision import each_alone
from zaq_plugin.ptq.plan import stored_size
from zaq_plugin.pwlq import QuantSpec
from zaq_timm.zoo.measure import distance, outputs

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Place:
    """A layer's weight, where it can be replaced.

    Attributes:
        name: the layer's.
        owner, attribute: the module that holds the tensor, and its name there.
        axis: of the output channels.
    """

    name: str
    owner: nn.Module
    attribute: str
    axis: int

    @property
    def weight(self) -> Tensor:
        """The weight itself."""
        value: Tensor = getattr(self.owner, self.attribute)
        return value

    def size(self, spec: QuantSpec) -> int:
        """Bytes of the weight on a grid, levels included."""
        return stored_size(self.weight.numel(), self.weight.shape[self.axis], spec)


@dataclass(frozen=True)
class Sensitivity:
    """What one layer at one format does to the outputs.

    Attributes:
        layer: its name.
        spec: the format.
        numel: number of weights.
        size: their bytes in this format, levels included.
        divergence: Ω, in nats.
    """

    layer: str
    spec: QuantSpec
    numel: int
    size: int
    divergence: float


def find_places(model: nn.Module, example: Tensor) -> tuple[nn.Module, list[Place]]:
    """A copy of the model with BatchNorm folded, and its layers' weights.

    By torch.export, whose graph holds computed weights as values; where it fails, by modules.
    """
    try:
        return _graph_places(model, example)
    except Exception:  # whatever export meets, modules are there
        folded = fold_batch_norm(model, (example,))
        places = [
            Place(name, module, "weight", channel_axis(module))
            for name, module in folded.named_modules()
            if isinstance(module, LAYERS)
        ]
        return folded, places


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


def measure_sensitivities(
    model: nn.Module,
    places: Sequence[Place],
    candidates: Callable[[Place], Sequence[QuantSpec]],
    images: Tensor,
    batch: int,
    report: Report,
) -> list[Sensitivity]:
    """Each layer in each of its formats, one at a time; all others float.

    Args:
        model: from `find_places`; its weights change meanwhile and come back.
        places: its layers.
        candidates: the formats of a layer.
        images: (n, C, H, W), synthetic.
        batch: so many at a time.
        report: told stage, step and steps.
    """
    reference = outputs(model, images, batch)

    def measured() -> float:
        return distance(reference, outputs(model, images, batch)).divergence

    sensitivities = []
    for index, place in enumerate(places):
        specs, weight = candidates(place), place.weight
        for spec, apart in zip(specs, each_alone(weight, place.axis, specs, measured), strict=True):
            size = place.size(spec)
            sensitivities.append(Sensitivity(place.name, spec, weight.numel(), size, apart))
        report("sensitivity of layers", index + 1, len(places))
    return sensitivities


def widths_of(spec: QuantSpec) -> list[QuantSpec]:
    """The formats of a family, from the narrowest to 8 bits, that a budget chooses among."""
    return list(spec.widths())
