"""What became of every convolution and linear layer of a prepared or converted graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from zaq_plugin.fake_quantize import PWLQActivationFakeQuantize, PWLQPerChannelFakeQuantize
from zaq_plugin.observers import PWLQPerChannelObserver
from zaq_plugin.report.records import Audit, LayerRecord, uniform_label, weight_facts
from zaq_plugin.student.fake_quantizers import integers_of
from zaq_pt2e import packing
from zaq_pt2e._compat import is_watcher, lowered_name
from zaq_pt2e.graph import (
    TRANSPOSED,
    Layer,
    argument,
    constant_value,
    layer_of,
    layers,
    note_of,
)
from zaq_pt2e.parts import hidden_parts

_ops = torch.ops.quantized_decomposed
_PER_CHANNEL = (_ops.dequantize_per_channel.default,)
_PER_TENSOR = (_ops.dequantize_per_tensor.default, _ops.dequantize_per_tensor.tensor)


def audit(model: GraphModule, lowered: GraphModule | None = None) -> Audit:
    """Every convolution and linear layer: by which spec it is quantized, or why it is not.

    Print it, or feed it to the manifest. A layer that is called twice has one record.

    Args:
        model: A prepared, converted or packed graph, also one that was saved and loaded.
        lowered: The same model lowered for x86; its kernels are read from it.

    Raises:
        ValueError: nothing was quantized, or there is no layer to be seen (a lowered model has
            none: pass the converted one, and the lowered one as ``lowered``).
    """
    all_layers = list(layers(model))
    if not all_layers and any(lowered_name(n.target) for n in model.graph.nodes):
        raise ValueError(
            "this model is lowered: its layers are kernels already. Use "
            "audit(converted, lowered=lowered)."
        )
    kernels = None if lowered is None else lowered_kernels(lowered)
    records: dict[str, LayerRecord] = {}
    hidden = [
        (
            part,
            layer if layer.path else replace(layer, name=f"{path}.{layer.name}"),
            f"it sits in a part that {operator} runs, a graph of its own",
        )
        for operator, path, part in hidden_parts(model)
        for layer in layers(part)
    ]
    for graph, layer, why in [*((model, layer, None) for layer in all_layers), *hidden]:
        record = _record(graph, layer, kernels, why)
        if layer.name not in records or not record.quantized:
            records[layer.name] = record
    return Audit(list(records.values())).require_any()


def lowered_kernels(lowered: GraphModule) -> dict[str, str]:
    """The int8 kernel that runs each layer of a lowered model, by the layer's name."""
    kernels: dict[str, str] = {}
    for node in lowered.graph.nodes:
        kernel = lowered_name(node.target)
        if kernel is None:
            continue
        for used in node.all_input_nodes:
            target = str(used.target)
            if used.op == "get_attr" and target.endswith("_scale"):
                kernels[layer_of(target.removesuffix("_scale"))] = kernel
    return kernels


def _record(
    model: GraphModule, layer: Layer, kernels: dict[str, str] | None, why: str | None = None
) -> LayerRecord:
    weight, note = argument(layer.node, 1), note_of(layer.node)
    numel = _numel(model, weight)
    facts = {**_weight_facts(model, weight), **_known(note)}
    common: dict[str, Any] = {"name": layer.name, "kind": layer.kind, "numel": numel}
    activation, exact = _activation(model, argument(layer.node, 0))
    if "spec" not in facts or "mac_bits" not in facts:
        reason = note.get("reason") or why or "no quantizer annotated it"
        return LayerRecord(**common, quantized=False, reason=reason, kernel=f"float32 {layer.kind}")
    if _simulated(weight):
        kernel = "simulated"
    elif kernels is not None:
        kernel = kernels.get(layer.name, f"float32 {layer.kind} on dequantized weights")
    elif exact and layer.node.target not in TRANSPOSED:
        kernel = f"int8 {layer.kind} once lowered"
    else:
        kernel = f"float32 {layer.kind} on dequantized weights"
    remarks = (note.get("remark") or note.get("reason"), note.get("norm"), note.get("grids"))
    reason = "; ".join(r for r in remarks if r) or None
    return LayerRecord(
        **common, quantized=True, reason=reason, kernel=kernel, activation=activation, **facts
    )


def _known(note: dict[str, Any]) -> dict[str, Any]:
    names = ("spec", "mac_bits", "stored_bits", "stored_bytes", "sqnr_db", "entropy_bits")
    return {n: note[n] for n in names if n in note} if "mac_bits" in note else {}


def _weight_facts(model: GraphModule, weight: object) -> dict[str, Any]:
    """Widths of a weight, from the modules or operators in front of the layer."""
    if not isinstance(weight, Node):
        return {}
    if weight.op == "call_module":
        module: Any = model.get_submodule(str(weight.target))
        if isinstance(module, PWLQPerChannelFakeQuantize | PWLQPerChannelObserver):
            return weight_facts(module.spec)
        if is_watcher(module):
            return _uniform(int(module.quant_max) - int(module.quant_min))
        return {}
    if weight.target in _PER_CHANNEL:
        return _uniform(int(weight.args[5]) - int(weight.args[4]))  # type: ignore[arg-type]
    if weight.target in _PER_TENSOR:
        return _uniform(int(weight.args[4]) - int(weight.args[3]))  # type: ignore[arg-type]
    return {}


def _uniform(steps: int) -> dict[str, Any]:
    bits = steps.bit_length()
    label = f"uniform {bits}b MAC/{bits}b stored (the host's)"
    return {"spec": label, "mac_bits": bits, "stored_bits": bits}


def _activation(model: GraphModule, node: object) -> tuple[str, bool]:
    """Label of a layer's input, and whether it comes in integers."""
    if isinstance(node, Node) and node.target in _PER_TENSOR:
        bits = (int(node.args[4]) - int(node.args[3])).bit_length()  # type: ignore[arg-type]
        return uniform_label(bits), True
    if isinstance(node, Node) and node.op == "call_module":
        module: Any = model.get_submodule(str(node.target))
        if isinstance(module, PWLQActivationFakeQuantize):
            return f"{module.format.label}, simulated", False
        integers = integers_of(module) if is_watcher(module) else None
        if integers is not None:
            return uniform_label((integers[1] - integers[0]).bit_length()), True
    return "float32", False


def _simulated(weight: object) -> bool:
    return isinstance(weight, Node) and weight.op == "call_module"


def _numel(model: GraphModule, weight: object) -> int:
    """Number of weights, whatever stands in front of the layer."""
    while isinstance(weight, Node):
        value = weight.meta.get("val")
        if isinstance(value, Tensor):
            return value.numel()
        constant = constant_value(model, weight)
        if constant is not None:
            return constant.numel()
        weight = argument(weight, 0)
    return 0


assert packing.OPERATORS  # its import registers the operators that packed graphs hold
