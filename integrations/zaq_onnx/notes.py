"""What a model knows about itself: names and formats of its layers, as its host wrote them down."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from zaq_onnx.simulated import is_simulated
from zaq_plugin.ptq import quantized_tensors
from zaq_plugin.report import Audit
from zaq_plugin.report.records import weight_facts

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
        if node.op != "call_function" or len(node.args) < 2:
            continue
        weight = node.args[1]
        while isinstance(weight, fx.Node) and weight.op == "call_function" and weight.args:
            weight = weight.args[0]
        if not isinstance(weight, fx.Node) or weight.op != "get_attr":
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


def note_for(notes: dict[str, Note], layer: str) -> Note:
    """A layer's note; hosts call the parts of fused modules ``name.0``."""
    return dict(notes.get(layer) or notes.get(layer.removesuffix(".0")) or {})
