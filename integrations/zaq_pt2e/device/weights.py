"""The integers that a converted graph multiplies by, layer by layer, and those of a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import GraphModule

from zaq_plugin.archive.readers import Weight, channel_axis
from zaq_pt2e.device.signed import DEQUANTIZE, int8_layers
from zaq_pt2e.graph import argument, constant_value


@dataclass
class DeviceFile:
    """What was read of a file, whatever the tool.

    Attributes:
        operators: As the tool calls them.
        weights: (int8 codes in the tool's order, scales) of every int8 layer.
        integer_layers: Layers with int8 weights and an int8 input.
        float_layers: Other layers.
        batch: Samples of the first input, the most that it takes.
        output_step: The largest step of the outputs' grids; 0 if there are none.
    """

    operators: Counter[str] = field(default_factory=Counter)
    weights: list[tuple[NDArray[np.int8], NDArray[np.float32]]] = field(default_factory=list)
    integer_layers: int = 0
    float_layers: int = 0
    batch: int = 1
    output_step: float = 0.0

    def archived(self) -> Iterator[Weight]:
        """Its int8 weights, for `zaq_plugin.archive`."""
        for codes, scales in self.weights:
            yield Weight(codes, channel_axis(codes.shape, len(scales)))


@dataclass(frozen=True)
class Int8Weight:
    """A layer's integer weight.

    Attributes:
        name: Of the layer.
        kind: ``Conv2d``, ``Linear`` ...
        codes: int8, in torch's order of dimensions.
        scales: float32, one for each step along the axis, or one.
        axis: Of the output channels; None if there is one scale.
    """

    name: str
    kind: str
    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    axis: int | None


def int8_weights(converted: GraphModule) -> list[Int8Weight]:
    """Every int8 layer's; a layer that is called twice is there twice."""
    weights = []
    for layer in int8_layers(converted):
        node = argument(layer.node, 1)
        codes = constant_value(converted, node.args[0])
        if codes is None:
            continue
        scale, axis = node.args[1], None
        if node.target in DEQUANTIZE:
            scales = np.array([scale], dtype=np.float32)
        else:
            value = constant_value(converted, scale)
            assert value is not None
            scales, axis = value.to(torch.float32).numpy(), int(node.args[3])
        weights.append(Int8Weight(layer.name, layer.kind, codes.numpy(), scales, axis))
    return weights


def missing(
    weights: list[Int8Weight],
    there: list[tuple[NDArray[np.int8], NDArray[np.float32]]],
    order: dict[int, list[tuple[int, ...]]],
) -> list[str]:
    """What a file lacks, a line for each layer; empty if all is there bit for bit.

    Args:
        weights: The model's.
        there: (codes, scales) of the file's weights. Dimensions of one do not count: a tool writes
            convolutions of one dimension as such of two.
        order: By number of dimensions, the orders that the tool may have given them.
    """
    there = [(codes.squeeze(), scales) for codes, scales in there]
    lines = []
    for weight in weights:
        orders = order.get(weight.codes.ndim) or [tuple(range(weight.codes.ndim))]
        forms = [np.ascontiguousarray(weight.codes.transpose(o)).squeeze() for o in orders]
        same = [(c, s) for c, s in there for f in forms if c.shape == f.shape and (c == f).all()]
        if any(np.array_equal(s, weight.scales) for _, s in same):
            continue
        if same:
            lines.append(f"{weight.name}: its integers are in the file, with other scales.")
            continue
        apart = [int((c != f).sum()) for c, _ in there for f in forms if c.shape == f.shape]
        nearest = f"; the nearest differs in {min(apart)} integers" if apart else ""
        lines.append(f"{weight.name}: its weight is not in the file{nearest}.")
    return lines
