"""Names that a person can read: weights are called after the layers that they belong to."""

from __future__ import annotations

import ast

import onnx
from onnx import NodeProto, helper

from zaq_onnx._compat import SCOPES
from zaq_onnx.graph import Graph, opset_of

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def scopes(graph: Graph) -> dict[str, str]:
    """The innermost module around each layer's node, by the node's output."""
    modules = {}
    for node in graph.nodes:
        if node.op_type not in LAYERS:
            continue
        for entry in node.metadata_props:
            if entry.key == SCOPES:
                names = [n for n in ast.literal_eval(entry.value)[:-1] if n]
                if names:
                    modules[node.output[0]] = str(names[-1])
    return modules


def name_weights(graph: Graph, layers: dict[str, str]) -> None:
    """Call integer weights ``<layer>.weight``, their scales ``<layer>.scale``; drop metadata."""
    producers = graph.producers()
    users: dict[str, int] = {}
    for node in graph.nodes:
        for name in node.input:
            users[name] = users.get(name, 0) + 1
    for node in list(graph.nodes):
        if node.op_type in LAYERS and len(node.input) > 1:
            weight = producers.get(node.input[1])
            if weight is not None and weight.op_type == "DequantizeLinear":
                _name(graph, weight, layers.get(node.output[0]) or node.output[0], users)
    for number, node in enumerate(graph.nodes):
        del node.metadata_props[:]
        node.doc_string = ""
        node.name = f"{node.op_type}_{number}"


def _name(graph: Graph, weight: NodeProto, layer: str, users: dict[str, int]) -> None:
    for position, word in ((0, "weight"), (1, "scale")):
        old = weight.input[position]
        if old not in graph.constants or old == f"{layer}.{word}":
            continue
        if word == "scale" and users.get(old, 0) > 1:
            continue
        new = graph.free(f"{layer}.{word}")
        graph.rename_constant(old, new)


def shorten(graph: Graph) -> None:
    """Let nodes take little room: short names of what flows between them, no defaults in words."""
    reserved = {*graph.outputs, *graph.inputs, *graph.constants}
    short: dict[str, str] = {}
    for node in graph.nodes:
        node.name = ""
        _drop_defaults(node, opset_of(graph.model))
        for name in node.output:
            if name and name not in reserved:
                number = len(short)
                while (word := f"t{number:x}") in reserved:
                    number += len(reserved)
                short[name] = word
                reserved.add(word)
    for node in graph.nodes:
        for names in (node.input, node.output):
            names[:] = [short.get(name, name) for name in names]


def _drop_defaults(node: NodeProto, opset: int) -> None:
    """Drop attributes that say what the operator does without them."""
    schemas = onnx.defs.get_schema(node.op_type, opset).attributes
    attributes = []
    for attribute in node.attribute:
        schema = schemas.get(attribute.name)
        default = schema.default_value if schema is not None else None
        same = (
            default is not None
            and default.type == attribute.type
            and helper.get_attribute_value(default) == helper.get_attribute_value(attribute)
        )
        values = list(attribute.ints)
        implied = node.op_type == "Conv" and values == [_IMPLIED.get(attribute.name)] * len(values)
        if not (implied and values) and not same:
            attributes.append(attribute)
    del node.attribute[:]
    node.attribute.extend(attributes)


_IMPLIED = {"dilations": 1, "strides": 1, "pads": 0}
"""Attributes of Conv that are so if they are not given; the schema says it in words alone."""
