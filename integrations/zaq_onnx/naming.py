"""Names that a person can read, and what a model knows about its layers itself.

Weights are called after the layers that they belong to; names and formats of layers are as their
host wrote them down.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import NodeProto, helper
from torch import fx, nn

from zaq_onnx._compat import SCOPES
from zaq_onnx.graph import Graph, opset_of
from zaq_onnx.sources import is_simulated
from zaq_plugin.ptq import quantized_tensors
from zaq_plugin.report import Audit
from zaq_plugin.report.records import weight_facts

# ---- Names in the graph --------------------------------------------------------------------------

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


# ---- What the model knows ------------------------------------------------------------------------

Note = dict[str, Any]
FIELDS = ("spec", "mac_bits", "stored_bits", "sqnr_db", "entropy_bits", "activation")


@dataclass
class Notes:
    """Names and formats.

    Attributes:
        records: Fields of a `LayerRecord` by layer.
        names: Layer by the module's name in the exported program, where they differ.
        weights: Layer by the name of its weight tensor.
    """

    records: dict[str, Note] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)


def notes_of(model: nn.Module, audit: Audit | None = None) -> Notes:
    """Everything that can be read from a model without its host."""
    notes = Notes()
    if isinstance(model, fx.GraphModule):
        _from_graph(model, notes)
    if isinstance(model, nn.Module) and is_simulated(model):
        for name, tensor in quantized_tensors(model).items():
            notes.records[name] = weight_facts(tensor.spec)
    for module in model.modules() if isinstance(model, nn.Module) else ():
        facts, weight = getattr(module, "facts", None), getattr(module, "weight", None)
        if isinstance(facts, dict) and isinstance(weight, str):  # a weight that was stripped
            name = weight.removesuffix(".weight")
            notes.records[name] = {k: facts[k] for k in FIELDS if facts.get(k) is not None}
    carried = getattr(model, "zaq_audit", None)
    for source in (carried, audit):
        if isinstance(source, Audit):
            for record in source.quantized:
                values = {k: getattr(record, k) for k in FIELDS}
                notes.records[record.name] = {k: v for k, v in values.items() if v is not None}
    return notes


def _from_graph(model: fx.GraphModule, notes: Notes) -> None:
    """Names and notes on the nodes of an exported graph, by the tensor that a layer reads."""
    for node in model.graph.nodes:
        weight = weight_behind(node)
        if weight is None:
            continue
        custom = node.meta.get("custom") or {}
        note: Note = next((v for v in custom.values() if isinstance(v, dict)), {})
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        name = note.get("name") or (str(stack[-1][0]) if stack else "")
        if not name:
            continue
        notes.weights[str(weight.target)] = name
        if "mac_bits" in note:
            notes.records[name] = {k: note[k] for k in FIELDS if k in note}


def weight_behind(node: fx.Node) -> fx.Node | None:
    """The tensor that an operator's second argument is computed from, as a layer's weight is."""
    weight = node.args[1] if node.op == "call_function" and len(node.args) > 1 else None
    while isinstance(weight, fx.Node) and weight.op == "call_function" and weight.args:
        weight = weight.args[0]
    return weight if isinstance(weight, fx.Node) and weight.op == "get_attr" else None


def note_for(notes: dict[str, Note], layer: str) -> Note:
    """A layer's note; hosts call the parts of fused modules ``name.0``."""
    return dict(notes.get(layer) or notes.get(layer.removesuffix(".0")) or {})
