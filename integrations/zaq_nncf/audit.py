"""What became of every weighted layer: by what format, with what activations, or why not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from zaq_nncf._compat import BaseQuantizer, HookStorage, decode_hook_name, hooks_of
from zaq_nncf.activation_quantizers import ActivationQuantizer
from zaq_nncf.placement import Placement
from zaq_nncf.settings import layer_name
from zaq_nncf.static import StaticActivation, StaticWeight
from zaq_nncf.weight_quantizer import PWLQWeightQuantizer
from zaq_plugin.layers import LAYERS
from zaq_plugin.pwlq import quantize
from zaq_plugin.report import Audit, LayerRecord

NOTES = "_zaq_nncf_notes"
"""Attribute of a model from `zaq_nncf.quantize`: what was asked for."""


def audit(model: nn.Module, example_input: Any = None) -> Audit:
    """What was quantized in a model from NNCF, and what was not and why.

    Args:
        model: From `zaq_nncf.quantize`, ``nncf.quantize`` or `zaq_nncf.strip`.
        example_input: A tensor, tuple or mapping that the model is called with; only needed to see
            the activations of a model that plain ``nncf.quantize`` made while PWLQ was registered.

    Returns:
        One record per convolution, linear layer and other weight that NNCF quantized.

    Raises:
        ValueError: nothing was quantized, or the model is not NNCF's.
    """
    storage = hooks_of(model)
    if example_input is not None:
        sources = Placement(model, example_input).sources()
        for _, module in storage.named_hooks():
            if isinstance(module, PWLQWeightQuantizer):
                module.source = sources.get(module.weight)
    quantizers = dict(weight_quantizers(model))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    owners = {
        f"{name}.weight" if name else "weight": module
        for name, module in model.named_modules()
        if isinstance(module, LAYERS)
    }
    names = list(owners) + [name for name in quantizers if name not in owners]
    found = Audit()
    seen: dict[int, str] = {}
    for name in names:
        owner: Any = owners.get(name)
        kind = type(owner).__name__ if owner is not None else _kind(model, name)
        value = owner.weight if owner is not None else parameters[name]
        first = seen.setdefault(id(value), name)
        if first != name:
            reason = f"shares its weight with {layer_name(first)!r}, where it is counted"
            found.add(_shared(name, kind, quantizers.get(first), reason))
            continue
        quantizer = quantizers.get(name)
        if quantizer is None:
            label = layer_name(name)
            found.add(LayerRecord(label, kind, value.numel(), False, _why_not(model, name)))
        else:
            found.add(_record(storage, name, kind, value, quantizer, _remark(model, name)))
    return found.require_any()


def weight_quantizers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every quantizer of a weight with the parameter's name: ours, NNCF's own, stripped ones."""
    for hook, module in hooks_of(model).named_hooks():
        if isinstance(module, PWLQWeightQuantizer | StaticWeight):
            yield module.weight, module
        elif isinstance(module, BaseQuantizer) and not isinstance(module, ActivationQuantizer):
            name = native_weight(model, hook)
            if name is not None:
                yield name, module


def native_weight(model: nn.Module, hook: str) -> str | None:
    """The parameter that a weight quantizer of NNCF's own sits on; None for activations."""
    kind, operator, port = decode_hook_name(hook)
    if kind != "pre_hooks" or port == 0:
        return None
    place = ".".join(operator.split("/")[:-2])
    owner = model.get_submodule(place)
    own = isinstance(owner._parameters.get("weight"), Tensor)
    return (f"{place}.weight" if place else "weight") if own else None


def _kind(model: nn.Module, name: str) -> str:
    """What owns a weight that is no convolution's and no linear layer's."""
    owner, _, last = name.rpartition(".")
    named = last == "weight" and owner
    return type(model.get_submodule(owner)).__name__ if named else "parameter"


def _why_not(model: nn.Module, name: str) -> str:
    notes = getattr(model, NOTES, {})
    called = notes.get("called")
    if called is not None and name not in called:
        return "never called on the calibration data"
    own = "a pattern of NNCF's own list, such as squeeze-and-excitation"
    scope = notes.get("ignored")
    if scope:
        return f"NNCF left it float: ignored_scope is {scope}, or {own}"
    if called is not None:
        return f"NNCF left it float: {own}, or an operator that the target device has not"
    return f"NNCF left it float: never called, ignored, or {own}"


def _remark(model: nn.Module, name: str) -> str | None:
    """What a reader should know of a weight that was quantized."""
    if layer_name(name) in getattr(model, NOTES, {}).get("baked", ()):
        return "its weight was computed at every call; what it computed is quantized"
    return None


def _shared(name: str, kind: str, quantizer: nn.Module | None, reason: str) -> LayerRecord:
    if quantizer is None:
        return LayerRecord(layer_name(name), kind, 0, False, reason)
    facts = native_facts() if isinstance(quantizer, BaseQuantizer) else {}
    spec = getattr(quantizer, "spec", None)
    if spec is not None:
        facts = {"spec": spec.label, "mac_bits": spec.mac_bits, "stored_bits": spec.stored_bits}
    return LayerRecord(layer_name(name), kind, 0, True, reason, stored_bytes=0, **facts)


def native_facts() -> dict[str, Any]:
    """Widths of a weight that was left to NNCF."""
    return {"spec": "uniform 8b MAC/8b stored (NNCF's own)", "mac_bits": 8, "stored_bits": 8}


def _record(
    storage: HookStorage,
    name: str,
    kind: str,
    value: Tensor,
    quantizer: Any,
    remark: str | None,
) -> LayerRecord:
    facts: dict[str, Any] = native_facts()
    activation, stripped = None, isinstance(quantizer, StaticWeight)
    if isinstance(quantizer, PWLQWeightQuantizer | StaticWeight):
        activation = activation_label(storage, quantizer.source)
    if isinstance(quantizer, PWLQWeightQuantizer):
        facts = pwlq_facts(quantizer, value)
    elif isinstance(quantizer, StaticWeight):
        facts = dict(quantizer.facts)
    kernel = "simulated"
    if stripped:
        kernel = f"int8 {kind} once exported" if activation else f"{kind} on int8 weights"
    return LayerRecord(
        layer_name(name),
        kind,
        value.numel(),
        True,
        remark,
        kernel=kernel,
        activation=activation,
        **facts,
    )


def pwlq_facts(quantizer: PWLQWeightQuantizer, weight: Tensor) -> dict[str, Any]:
    """Widths, size and error of a weight on its levels, as a layer's record wants them."""
    grid = quantizer.grid
    spec = grid.spec
    facts: dict[str, Any] = {
        "spec": spec.label,
        "mac_bits": spec.mac_bits,
        "stored_bits": spec.stored_bits,
    }
    if grid.edges.numel():
        tensor = quantize(weight.detach(), spec, grid.ch_axis, edges=grid.edges.detach())
        facts |= {
            "stored_bytes": tensor.stored_bytes,
            "sqnr_db": tensor.sqnr_db,
            "entropy_bits": tensor.entropy_bits,
        }
    return facts


def activation_label(storage: HookStorage, source: str | None) -> str | None:
    """What the quantizer at a hook does to a layer's input; None if there is none of ours."""
    if source is None:
        return None
    try:
        module: Any = storage.get_submodule(source)
    except AttributeError:
        return None
    if isinstance(module, ActivationQuantizer | StaticActivation):
        return f"uniform {module.bits} bits per tensor"
    return None
