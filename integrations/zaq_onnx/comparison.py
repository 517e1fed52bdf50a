"""A file's weights against those of the model that it was made from."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from zaq_onnx.export import graph_of
from zaq_onnx.floats import dequantized
from zaq_onnx.graph import Array, Graph
from zaq_onnx.weights import Weight, weights_of


def compare_weights(
    graph: Graph, model: nn.Module, inputs: tuple[Any, ...], reduced: bool
) -> list[str]:
    """What differs, a sentence each.

    Args:
        graph: Of the file, unpacked.
        model: The model that was exported.
        inputs: What it is called with.
        reduced: Whether the file's weights were made smaller, see `zaq_onnx.reduction`.
    """
    problems = []
    expected, _, _ = graph_of(model, inputs, reduce_range=reduced)
    there, floats = _by_name(graph), _float_weights(graph)
    for name, (weight, scale) in _by_name(expected).items():
        integers = weight.integers
        if name in floats:
            if not np.array_equal(floats[name], dequantized(weight, scale)):
                problems.append(f"{name!r} is float, and differs from the model's levels.")
        elif name not in there:
            problems.append(f"the file has no weight {name!r}, which the model has.")
        elif not np.array_equal(there[name][0].integers, integers):
            stored = there[name][0].integers
            wrong = (
                int((stored != integers).sum()) if stored.shape == integers.shape else integers.size
            )
            problems.append(f"{wrong} integers of {name!r} differ from the model's.")
        elif not np.array_equal(there[name][1], scale):
            problems.append(f"the scales of {name!r} differ from the model's.")
    return problems


def _by_name(graph: Graph) -> dict[str, tuple[Weight, Array]]:
    weights = {}
    for weight in weights_of(graph):
        scale = graph.array(weight.node.input[1])
        assert scale is not None
        weights[weight.name] = weight, scale
    return weights


def _float_weights(graph: Graph) -> dict[str, Array]:
    """Of convolutions; see `zaq_onnx.targets`."""
    names = {node.input[1] for node in graph.of_type("Conv")} & graph.constants.keys()
    values = {name: graph.array(name) for name in names}
    return {name: value for name, value in values.items() if value is not None}
