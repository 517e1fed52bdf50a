"""Weights as int8 constants behind one DequantizeLinear, whatever the exporter put between."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from zaq_onnx.graph import Array, Graph, attribute, make, set_attribute


def drop_identities(graph: Graph) -> None:
    """Identity nodes, but for those that make an output of an input."""
    for node in graph.of_type("Identity"):
        if node.output[0] not in graph.outputs:
            graph.rename_input(node.output[0], node.input[0])
            graph.remove(node)


def fold_weights(graph: Graph) -> None:
    """Constants that are quantized, limited or transposed are computed now."""
    for node in list(graph.nodes):
        if node.op_type == "QuantizeLinear" and graph.array(node.input[0]) is not None:
            _replace(graph, node, quantize_linear(graph, node))
        elif node.op_type == "Clip" and _integers(graph.array(node.input[0])):
            _replace(graph, node, _clipped(graph, node))
    producers = graph.producers()
    for node in list(graph.nodes):
        source = producers.get(node.input[0]) if node.input else None
        if node.op_type != "Transpose" or source is None or not _constant_weight(graph, source):
            continue
        perm = list(attribute(node, "perm"))
        turned = make("DequantizeLinear", list(source.input), node.output[0])
        codes = graph.array(source.input[0])
        assert codes is not None
        turned.input[0] = graph.add_constant(f"{source.input[0]}.t", codes.transpose(perm))
        set_attribute(turned, "axis", perm.index(_axis(source, codes.ndim)))
        graph.insert_before(node, turned)
        graph.remove(node)


def _clipped(graph: Graph, node: NodeProto) -> Array:
    value = graph.array(node.input[0])
    assert value is not None
    bounds = [graph.array(name) if name else None for name in node.input[1:]]
    low, high = [*bounds, None, None][:2]
    clipped: Array = np.clip(value, low, high).astype(value.dtype)
    return clipped


def _constant_weight(graph: Graph, node: NodeProto) -> bool:
    return node.op_type == "DequantizeLinear" and graph.array(node.input[0]) is not None


def _axis(node: NodeProto, ndim: int) -> int:
    return int(attribute(node, "axis", 1)) % ndim


def _integers(value: Array | None) -> bool:
    return value is not None and value.dtype.kind in "iu"


def _replace(graph: Graph, node: NodeProto, value: Array) -> None:
    name = graph.add_constant(f"{node.input[0]}.int8", value)
    graph.rename_input(node.output[0], name)
    graph.remove(node)


def quantize_linear(graph: Graph, node: NodeProto, value: Array | None = None) -> Array:
    """What a QuantizeLinear with constant grid makes of its constant input, or of another value."""
    x = graph.array(node.input[0]) if value is None else value
    scale = graph.array(node.input[1])
    zero = graph.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if x is None or scale is None:
        raise ValueError(f"QuantizeLinear {node.name!r}: input and scale must be constants.")
    zero = np.zeros_like(scale, np.uint8) if zero is None else zero
    if scale.ndim and x.ndim:
        shape = [1] * x.ndim
        shape[_axis(node, x.ndim)] = -1
        scale, shaped = scale.reshape(shape), zero.reshape(shape)
    else:
        shaped = zero
    limits = np.iinfo(zero.dtype)
    codes = np.rint(x.astype(np.float32) / scale) + shaped.astype(np.float32)
    return np.clip(codes, limits.min, limits.max).astype(zero.dtype)
