"""What became of every weighted layer: by what format, with what activations, or why not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from zaq_nncf._compat import BaseQuantizer, HookStorage, hooks_of
from zaq_nncf.activation_quantizers import ActivationQuantizer
from zaq_nncf.placement import Placement
from zaq_nncf.settings import layer_name
from zaq_nncf.static import StaticActivation, StaticWeight
from zaq_nncf.weight_quantizer import PWLQWeightQuantizer, native_weight
from zaq_plugin.layers import LAYERS
from zaq_plugin.pwlq import QuantSpec, quantize
from zaq_plugin.report import Audit, LayerRecord
from zaq_plugin.report.records import uniform_label, weight_facts

NOTES = "_zaq_nncf_notes"
"""Attribute of a model from `zaq_nncf.quantize`: what was asked for."""


def audit(model: nn.Module, example_input: Any = None) -> Audit:
    """What was quantized in a model from NNCF, and what was not and why.

    Args:
        model: From `zaq_nncf.quantize`, ``nncf.quantize`` or `zaq_nncf.strip`.
        example_input: A tensor, tuple or mapping that the model is called with; only needed to see
            the activations of a model that plain ``nncf.quantize`` made while PWLQ was registered,
            and to tell the weights of a ModuleList apart if it was not.

    Returns:
        One record per convolution, linear layer and other weight that NNCF quantized.

    Raises:
        ValueError: nothing was quantized, the model is not NNCF's, or a weight cannot be told
            without an example.
    """
    storage = hooks_of(model)
    placed: dict[str, str] = {}
    if example_input is not None:
        placement = Placement(model, example_input)
        sources, placed = placement.sources(), placement.parameters()
        for _, module in storage.named_hooks():
            if isinstance(module, PWLQWeightQuantizer):
                module.source = sources.get(module.weight)
    parameters: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    parameters |= dict(model.named_buffers(remove_duplicate=False))
    quantizers = _by_parameter(weight_quantizers(model, placed), parameters)
    owners = {
        f"{name}.weight" if name else "weight": module
        for name, module in model.named_modules()
        if isinstance(module, LAYERS)
    }
    notes = _notes_of(model)
    weights = [name for name in (*quantizers, *notes.get("computed", ())) if name in parameters]
    names = list(dict.fromkeys([*owners, *weights]))
    records = Audit()
    seen: dict[int, str] = {}
    for name in names:
        owner: Any = owners.get(name)
        kind = type(owner).__name__ if owner is not None else _kind(model, name)
        value = owner.weight if owner is not None else parameters[name]
        first = seen.setdefault(id(value), name)
        if first != name:
            reason = f"shares its weight with {layer_name(first)!r}, where it is counted"
            records.add(_shared(name, kind, _of(quantizers, parameters, first), reason))
            continue
        quantizer = _of(quantizers, parameters, name)
        if quantizer is None:
            label, reason = layer_name(name), _why_not(notes, _aliases(parameters, name))
            records.add(LayerRecord(label, kind, value.numel(), False, reason))
        else:
            remarks = _remark(model, name), notes.get("unread", ())
            records.add(_record(storage, name, kind, value, quantizer, *remarks))
    return records.require_any()


def weight_quantizers(
    model: nn.Module, placed: Mapping[str, str] | None = None
) -> Iterator[tuple[str, nn.Module]]:
    """Every quantizer of a weight with the parameter's name: ours, NNCF's own, stripped ones.

    Args:
        model: From NNCF.
        placed: What is known of hooks on parameters, from `Placement.parameters`.
    """
    for hook, module in hooks_of(model).named_hooks():
        if isinstance(module, PWLQWeightQuantizer | StaticWeight):
            yield module.weight, module
        elif isinstance(module, BaseQuantizer) and not isinstance(module, ActivationQuantizer):
            name = (placed or {}).get(hook) or native_weight(model, hook, module)
            if name is not None:
                yield name, module


def _notes_of(model: nn.Module) -> dict[str, Any]:
    """What `zaq_nncf.quantize` noted of a model that it made."""
    notes: dict[str, Any] = getattr(model, NOTES, {})
    return notes


def _spec_of(quantizer: nn.Module) -> QuantSpec | None:
    """The format of a quantizer of ours."""
    return quantizer.spec if isinstance(quantizer, PWLQWeightQuantizer | StaticWeight) else None


def _by_parameter(
    modules: Iterable[tuple[str, nn.Module]], parameters: Mapping[str, Tensor]
) -> dict[str, nn.Module]:
    """A quantizer for each parameter's name; of several that of a layer, which has a format."""
    chosen: dict[str, nn.Module] = {}
    for name, module in modules:
        before = chosen.get(name)
        if name in parameters and (before is None or _spec_of(before) is None):
            chosen[name] = module
    return chosen


def _aliases(parameters: Mapping[str, Tensor], name: str) -> list[str]:
    """All names of a parameter: NNCF knows a shared one by the first."""
    value = parameters.get(name)
    return [name] + [n for n, other in parameters.items() if other is value and n != name]


def _of(
    quantizers: Mapping[str, nn.Module], parameters: Mapping[str, Tensor], name: str
) -> nn.Module | None:
    """The quantizer of a parameter, whichever of its names that is known by."""
    return next((quantizers[n] for n in _aliases(parameters, name) if n in quantizers), None)


def _kind(model: nn.Module, name: str) -> str:
    """What owns a weight that is no convolution's and no linear layer's."""
    owner, _, last = name.rpartition(".")
    named = last == "weight" and owner
    return type(model.get_submodule(owner)).__name__ if named else "parameter"


def _why_not(notes: Mapping[str, Any], names: Iterable[str]) -> str:
    """Why a parameter, known by any of these names, has no quantizer."""
    names = list(names)
    own = "a pattern of NNCF's own list, such as squeeze-and-excitation"
    if not notes:
        return f"NNCF left it float: never called, ignored, or {own}"
    computed = [notes["computed"][n] for n in names if n in notes["computed"]]
    readers = [kind for n in names for kind in notes["readers"].get(n, ())]
    if not any(n in notes["called"] for n in names):
        if computed:
            return (
                f"what is multiplied is computed from it at every call ({computed[0]}), and NNCF "
                "has weight quantizers for parameters only"
            )
        if any(n in notes["later"] for n in names):
            return "not called by the first calibration batch, in which NNCF looks for its layers"
        if not readers:
            return "never called on the calibration data"
        return f"read by {', '.join(readers)}, where NNCF quantizes no weight"
    scope = notes.get("ignored")
    if scope:
        return f"NNCF left it float: ignored_scope is {scope}, or {own}"
    return f"NNCF left it float: {own}, or an operator that the target device has not"


def _remark(model: nn.Module, name: str) -> str | None:
    """What a reader should know of a weight that was quantized."""
    if layer_name(name) in _notes_of(model).get("baked", ()):
        return "its weight was computed at every call; what it computed is quantized"
    return None


def _shared(name: str, kind: str, quantizer: nn.Module | None, reason: str) -> LayerRecord:
    if quantizer is None:
        return LayerRecord(layer_name(name), kind, 0, False, reason)
    facts = native_facts() if isinstance(quantizer, BaseQuantizer) else {}
    spec = _spec_of(quantizer)
    if spec is not None:
        facts = weight_facts(spec)
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
    unread: Sequence[str],
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
    if activation is None and unread and isinstance(quantizer, PWLQWeightQuantizer | StaticWeight):
        lost = (
            f"its input is float: NNCF quantizes what '{unread[0]}' returns, and the model reads "
            "the tensor that it writes into instead; write x = x.op(...)"
        )
        remark = lost if remark is None else f"{remark}; {lost}"
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
    if not grid.edges.numel():
        return weight_facts(spec)
    edges = grid.edges.detach()
    return weight_facts(spec, quantize(weight.detach(), spec, grid.ch_axis, edges=edges))


def activation_label(storage: HookStorage, source: str | None) -> str | None:
    """What the quantizer at a hook does to a layer's input; None if there is none of ours."""
    if source is None:
        return None
    try:
        module: Any = storage.get_submodule(source)
    except AttributeError:
        return None
    if isinstance(module, ActivationQuantizer | StaticActivation):
        return uniform_label(module.bits)
    return None
