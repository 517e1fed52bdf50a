"""An int8 graph as the bytes of a `.tflite` file."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from zaq_litert._compat import convert
from zaq_plugin.errors import in_short
from zaq_pt2e.device.signed import int8_layers
from zaq_pt2e.graph import argument, new_tensor, tensor_at

_ops = torch.ops.quantized_decomposed
QUANTIZE = {
    _ops.dequantize_per_channel.default: _ops.quantize_per_channel.default,
    _ops.dequantize_per_tensor.default: _ops.quantize_per_tensor.default,
}
"""What undoes them; weights are on scales of their channels, other constants on one."""


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
            raise ValueError(
                f"litert: the model cannot be converted: {in_short(error)}"
            ) from error


@torch.no_grad()
def unfolded(graph: GraphModule) -> GraphModule:
    """A copy whose int8 constants are float levels, quantized in the graph: what the tool takes.

    Constants are weights, and what sums and products read: tokens, embeddings, layers' scales.
    ``scale * code`` divided by the scale rounds to the code again.
    """
    model = copy.deepcopy(graph)
    for node in list(model.graph.nodes):
        if node.target not in QUANTIZE or node.args[0].op != "get_attr":
            continue
        name = str(node.args[0].target)
        levels = nn.Parameter(_levels(model, node, tensor_at(model, name)), requires_grad=False)
        constant = new_tensor(model, name.replace(".", "_") + "_levels", levels, node)
        with model.graph.inserting_before(node):
            arguments = (constant, *node.args[1:])
            quantized = model.graph.call_function(QUANTIZE[node.target], arguments)
        node.args = (quantized, *node.args[1:])
    model.recompile()
    return model


def _levels(model: GraphModule, node: Node, codes: Tensor) -> Tensor:
    if node.target is _ops.dequantize_per_tensor.default:
        scale, zero = argument(node, 1), argument(node, 2)
        return codes.float().sub_(zero).mul_(scale)
    scales = tensor_at(model, str(argument(node, 1).target))
    shape = [1] * codes.dim()
    shape[argument(node, 3)] = -1
    return codes.float() * scales.reshape(shape)


def merged_layers(graph: GraphModule) -> int:
    """How many int8 layers a file has at least: the converter merges what computes the same.

    Such are layers of equal weights that read the same, as the projections of relative positions in
    ConViT do before training.
    """
    numbers: dict[object, int] = {}
    of: dict[Node, int] = {}
    for node in graph.graph.nodes:
        key: object = node.name
        if node.op == "get_attr":
            value = tensor_at(graph, str(node.target)).detach().contiguous()
            key = (value.dtype, value.shape, value.numpy().tobytes())
        elif node.op == "call_function":
            inputs = map_arg((node.args, node.kwargs), lambda n: f"%{of[n]}")
            key = (node.target, repr(inputs))
        of[node] = numbers.setdefault(key, len(numbers))
    return len({of[layer.node] for layer in int8_layers(graph)})
