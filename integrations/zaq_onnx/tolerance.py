"""How far a model's outputs move when its inputs are off by one step of their grids."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zaq_onnx.graph import Array, Graph
from zaq_onnx.inspection import input_steps
from zaq_onnx.naming import LAYERS

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
