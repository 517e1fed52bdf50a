"""An int8 graph as the bytes of a `.tflite` file."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from zaq_litert._compat import convert
from zaq_pt2e.graph import new_tensor, tensor_at

_ops = torch.ops.quantized_decomposed
QUANTIZE_WEIGHT = _ops.quantize_per_channel.default
DEQUANTIZE_WEIGHT = _ops.dequantize_per_channel.default


def lower(graph: nn.Module, example: tuple[Any, ...], *, quantized: bool = True) -> bytes:
    """The file's bytes.

    Args:
        graph: Its activations are int8; or a float model.
        example: Of the batch that the file takes.
        quantized: Whether the graph is.

    Raises:
        ValueError: the tool cannot follow the graph.
    """
    model = unfolded(graph) if quantized and isinstance(graph, GraphModule) else graph
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return convert(model, example, quantized)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of whatever class its many stages raise
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            text = f"{type(error).__name__}: {lines[0] if lines else ''}"[:400]
            raise ValueError(f"litert: the model cannot be converted: {text}") from error


@torch.no_grad()
def unfolded(graph: GraphModule) -> GraphModule:
    """A copy whose weights are float levels that are quantized in the graph: what the tool takes.

    ``scale * code`` divided by the scale rounds to the code again.
    """
    model = copy.deepcopy(graph)
    for node in list(model.graph.nodes):
        if node.target is not DEQUANTIZE_WEIGHT or node.args[0].op != "get_attr":
            continue
        codes, scale = (tensor_at(model, str(node.args[i].target)) for i in (0, 1))
        axis = int(node.args[3])
        shape = [1] * codes.dim()
        shape[axis] = -1
        name = str(node.args[0].target).replace(".", "_") + "_levels"
        levels = nn.Parameter(codes.float() * scale.reshape(shape), requires_grad=False)
        weight = new_tensor(model, name, levels, node)
        with model.graph.inserting_before(node):
            quantized = model.graph.call_function(QUANTIZE_WEIGHT, (weight, *node.args[1:]))
        node.args = (quantized, *node.args[1:])
    model.recompile()
    return model
