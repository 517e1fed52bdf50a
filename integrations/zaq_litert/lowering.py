"""A graph as the bytes of a `.tflite` file: int8, float, or the tool's own stock int8."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import flatbuffers
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from zaq_litert._compat import convert, stock_quantizer
from zaq_litert.transposed import put_codes, quantized_by_the_tool
from zaq_plugin.errors import in_short
from zaq_pt2e.device.making import observe
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
            data = convert(model, example, quantized)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of whatever class its many stages raise
            raise ValueError(f"litert: the model cannot be converted: {in_short(error)}") from error
    if quantized and isinstance(graph, GraphModule):
        file = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
        put_codes(file, graph)
        data = _packed(file)
    return data


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
        if quantized_by_the_tool(node):
            node.replace_all_uses_with(constant)
            continue
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


# ---- Float in- and outputs -----------------------------------------------------------------------

_IDENTIFIER = b"TFL3"


def with_float_interface(data: bytes) -> bytes:
    """The same file with quantize operators in front of it and dequantize operators behind it."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    graph = model.subgraphs[0]
    operator = schema.BuiltinOperator
    moved: dict[int, int] = {}
    graph.inputs, graph.outputs = [*map(int, graph.inputs)], [*map(int, graph.outputs)]
    for places, kind in ((graph.inputs, operator.QUANTIZE), (graph.outputs, operator.DEQUANTIZE)):
        for position, index in enumerate(list(places)):
            tensor = graph.tensors[index]
            if tensor.type != schema.TensorType.INT8:
                continue
            outer = copy.copy(tensor)
            outer.type, outer.buffer, outer.quantization = schema.TensorType.FLOAT32, 0, None
            tensor.name = bytes(tensor.name) + b"_int8"
            graph.tensors.append(outer)
            new = len(graph.tensors) - 1
            moved[index] = new
            places[position] = new
            op = schema.OperatorT()
            op.opcodeIndex = _code(model, kind)
            entering = kind == operator.QUANTIZE
            op.inputs, op.outputs = ([new], [index]) if entering else ([index], [new])
            graph.operators.insert(0 if entering else len(graph.operators), op)
    for signature in model.signatureDefs or ():
        for entry in [*signature.inputs, *signature.outputs]:
            entry.tensorIndex = moved.get(int(entry.tensorIndex), entry.tensorIndex)
    return _packed(model)


def _packed(model: Any) -> bytes:
    """A file of a ``ModelT``."""
    builder = flatbuffers.Builder(4096)
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


def _code(model: Any, kind: int) -> int:
    """The index of a builtin operator among the file's, which gets it if it has it not."""
    for index, code in enumerate(model.operatorCodes):
        if code.builtinCode == kind:
            return index
    operator_code = schema.OperatorCodeT()
    operator_code.builtinCode, operator_code.deprecatedBuiltinCode, operator_code.version = (
        kind,
        min(kind, 127),
        1,
    )
    model.operatorCodes.append(operator_code)
    return len(model.operatorCodes) - 1


# ---- What a network's own file is compared with --------------------------------------------------

Path_ = str | os.PathLike[str]


def write_float(model: nn.Module, example_inputs: tuple[Any, ...], path: Path_) -> None:
    """The float model.

    Raises:
        ValueError: LiteRT cannot follow it.
    """
    Path(path).write_bytes(lower(model, example_inputs, quantized=False))


def write_stock(
    model: nn.Module, example_inputs: tuple[Any, ...], batches: Iterable[Any], path: Path_
) -> None:
    """Quantized by its own ``PT2EQuantizer``, a scale per channel; float in- and outputs.

    Args:
        model: A float model, in evaluation mode.
        example_inputs: One sample; the file takes batches of this size.
        batches: Calibration batches of the same size.
        path: The file to write.

    Raises:
        ValueError: LiteRT cannot follow it.
    """
    graph = torch.export.export(model, example_inputs).module()
    prepared = prepare_pt2e(graph, stock_quantizer())
    observe(prepared, batches)
    converted = convert_pt2e(prepared, fold_quantize=False)
    Path(path).write_bytes(with_float_interface(lower(converted, example_inputs)))


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
