"""A file against the model that it was made from: its weights, and how far outputs may move."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zaq_onnx.export import graph_of
from zaq_onnx.graph import Array, Graph
from zaq_onnx.inspection import input_steps
from zaq_onnx.naming import LAYERS
from zaq_onnx.weights import Weight, weights_of

# ---- Weights -------------------------------------------------------------------------------------


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
            if not np.array_equal(floats[name], weight.floats(scale)):
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


# ---- How far outputs move when inputs are off by one step of their grids -------------------------

Run = Callable[[tuple[Any, ...]], list[Array]]
DRAWS = 2
"""How often the inputs are moved, in random directions."""


def moves(graph: Graph, reference: Run, inputs: tuple[Any, ...]) -> float:
    """The largest difference of an output; 0 if no input meets a grid."""
    steps = input_steps(graph)
    expected = reference(inputs)
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for _ in range(DRAWS):
        moved = []
        for name, x in zip(graph.inputs, inputs, strict=True):
            value = torch.as_tensor(x)
            if value.is_floating_point():
                step = steps[name] if name in steps else _step_behind(graph, name, value)
                value = value + step * torch.randn(value.shape, generator=generator).sign()
            moved.append(value)
        worst = max(worst, largest(reference(tuple(moved)), expected))
    return worst


def _step_behind(graph: Graph, name: str, value: Tensor) -> float:
    """Eight bits' step of an input that meets its grid behind other operators, else 0."""
    if value.numel() == 0 or not meets_grid(graph, name):
        return 0.0
    span = float(value.max() - value.min())
    return span / 255 if math.isfinite(span) else 0.0


def meets_grid(graph: Graph, name: str) -> bool:
    """Whether an input is put on a grid before a layer multiplies it."""
    consumers, seen, waiting = graph.consumers(), {name}, [name]
    while waiting:
        for node in consumers[waiting.pop()]:
            if node.op_type == "QuantizeLinear":
                return True
            if node.op_type not in LAYERS:
                waiting += [output for output in node.output if output not in seen]
                seen.update(node.output)
    return False


def largest(first: list[Array], second: list[Array]) -> float:
    """The largest difference of two lists of outputs."""
    both = zip(first, second, strict=True)
    return max((float(np.abs(a - b).max(initial=0)) for a, b in both), default=0.0)
