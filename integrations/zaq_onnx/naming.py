"""Names that a person can read: weights are called after the layers that they belong to."""

from __future__ import annotations

import ast

from onnx import NodeProto

from zaq_onnx._compat import SCOPES
from zaq_onnx.graph import Graph

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def scopes(graph: Graph) -> dict[str, str]:
    """The innermost module around each layer's node, by the node's output."""
    found = {}
    for node in graph.nodes:
        if node.op_type not in LAYERS:
            continue
        for entry in node.metadata_props:
            if entry.key == SCOPES:
                names = [n for n in ast.literal_eval(entry.value)[:-1] if n]
                if names:
                    found[node.output[0]] = str(names[-1])
    return found


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
