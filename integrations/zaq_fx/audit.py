"""What became of every weighted layer: by what format, on which kernel, and if not, why not."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import torch.ao.nn.quantized as nnq
from torch import Tensor, fx, nn

from zaq_fx._compat import is_prepared
from zaq_fx.followers import Follower
from zaq_fx.kept import KeptFloat
from zaq_fx.layers import WEIGHTED, Layer, engine, has_root, input_watcher, layers_of
from zaq_fx.surgery import FUNCTIONAL
from zaq_plugin.fake_quantize import PWLQActivationFakeQuantize
from zaq_plugin.report import Audit, LayerRecord
from zaq_plugin.report.records import uniform_label, weight_facts
from zaq_plugin.student.fake_quantizers import integers_of

_FLOAT = "left float by the qconfig mapping"
_HOST = "the host kept it float: its backend configuration does not take this qconfig here"


def audit(model: nn.Module, planned: Audit | None = None) -> Audit:
    """What was quantized in a prepared or converted model, and what was not and why.

    For a prepared model the audit says what conversion will do. `zaq_fx.convert` passes that on to
    the model that it returns, as ``zaq_audit``. Stock ``convert_fx`` forgets everything but the
    integers: audit the prepared model first and hand the result in as ``planned``, or the formats
    are only guessed from the integers.

    Args:
        model: From prepare_fx, prepare_qat_fx, convert_fx or convert_to_reference_fx.
        planned: The audit of the prepared model; by default what the model remembers.

    Returns:
        One record per convolution, linear layer and other module with a weight matrix, and per
        layer or operator that `prepare_model` keeps float because the host would convert it to
        something else.

    Raises:
        ValueError: nothing was quantized.
        TypeError: model is no GraphModule.
    """
    if not isinstance(model, fx.GraphModule):
        raise TypeError(
            f"audit expects the GraphModule that FX preparation or conversion returns; got "
            f"{type(model).__name__}."
        )
    if is_prepared(model):
        return plan(model).require_any()
    if planned is None:
        planned = getattr(model, "zaq_audit", None)
    return _converted(model, planned).require_any()


def plan(prepared: fx.GraphModule, *, measure: bool = True) -> Audit:
    """The records of a prepared model, in order of execution.

    Args:
        measure: Quantize every weight to measure sizes and errors; else only name the formats.
    """
    records = Audit()
    for layer in layers_of(prepared):
        records.add(_planned(prepared, layer, measure))
    for record in _strangers(prepared):
        records.add(record)
    return records


def _planned(prepared: fx.GraphModule, layer: Layer, measure: bool) -> LayerRecord:
    weight: Tensor = layer.root.weight  # type: ignore[assignment]
    if layer.qconfig is None:
        return LayerRecord(layer.name, layer.kind, weight.numel(), False, reason=_FLOAT)
    if layer.spec is None:
        reason = "quantized by the host's own uniform weight observer, not by this package"
        return LayerRecord(layer.name, layer.kind, weight.numel(), False, reason=reason)
    return LayerRecord(
        layer.name,
        layer.kind,
        weight.numel(),
        True,
        kernel="simulated (not converted yet)",
        activation=_activation_label(input_watcher(prepared, layer)),
        reason=prepared.meta.get("zaq_remarks", {}).get(layer.name),
        **weight_facts(layer.spec, layer.quantized() if measure else None),
    )


def _activation_label(watcher: Any) -> str | None:
    if watcher is None:
        return None
    watcher = watcher.leader if isinstance(watcher, Follower) else watcher
    if isinstance(watcher, PWLQActivationFakeQuantize):
        return f"{watcher.spec.label} per tensor, simulated"
    integers = integers_of(watcher)
    return None if integers is None else uniform_label((integers[1] - integers[0]).bit_length())


def _strangers(model: fx.GraphModule) -> list[LayerRecord]:
    """Weight matrices outside convolution and linear modules: nobody here quantizes them."""
    records = []
    called = {str(n.target) for n in model.graph.nodes if n.op == "call_module"}
    for name, module in model.named_modules():
        if name not in called or has_root(module) or isinstance(module, tuple(_QUANTIZED)):
            continue
        if isinstance(module, KeptFloat):
            if module.listed:
                numel = sum(p.numel() for p in module.parameters())
                records.append(LayerRecord(name, module.kind, numel, False, reason=module.reason))
            continue
        weights = [p for p in module.parameters() if p.dim() >= 2]
        if weights and not type(module).__module__.startswith("torch.ao"):
            records.append(
                LayerRecord(
                    name,
                    type(module).__name__,
                    sum(p.numel() for p in weights),
                    False,
                    reason="FX treats this module as a whole; it has no convolution or linear "
                    "layer that could be quantized",
                )
            )
    unreached = (
        "its weight is no parameter of the model (computed from the input, or "
        "zaq_fx.prepare_model was not called before preparing)"
    )
    functional = [
        LayerRecord(n.name, f"functional {n.target.__name__}", 0, False, reason=unreached)
        for n in model.graph.nodes
        if n.op == "call_function" and n.target in FUNCTIONAL
    ]
    return records + functional


_QUANTIZED: dict[type[Any], str] = {
    nnq.Conv1d: "conv1d",
    nnq.Conv2d: "conv2d",
    nnq.Conv3d: "conv3d",
    nnq.ConvTranspose1d: "conv_transpose1d",
    nnq.ConvTranspose2d: "conv_transpose2d",
    nnq.ConvTranspose3d: "conv_transpose3d",
    nnq.Linear: "linear",
}


def _converted(model: fx.GraphModule, planned: Audit | None) -> Audit:
    modules = dict(model.named_modules())
    called = {str(n.target) for n in model.graph.nodes if n.op == "call_module"}
    records = Audit()
    for name, module in modules.items():
        kernel = _kernel(module)
        owner = name.rpartition(".")[0]
        fused = owner in called and isinstance(modules[owner], nn.Sequential)
        if kernel is None or not (name in called or fused):
            continue
        before = None if planned is None else _lookup(planned, name)
        if kernel == "":
            reason = _HOST if before is None or before.quantized else before.reason
            label = before.name if before is not None else owner if fused else name
            records.add(
                LayerRecord(label, type(module).__name__, _numel(module), False, reason=reason)
            )
        elif before is not None and before.quantized:
            records.add(dataclasses.replace(before, kernel=kernel))
        else:
            records.add(_from_integers(name, module, kernel))
    for record in _strangers(model):
        records.add(record)
    present = {record.name for record in records}
    for record in planned or ():  # what `prepare_model` kept float is plain modules and calls now
        if not (record.quantized or {record.name, f"{record.name}.0"} & present):
            records.add(record)
    return records


def _lookup(planned: Audit, name: str) -> LayerRecord | None:
    """The record of a module, which may be the first part of a fused one."""
    for candidate in (name, name.removesuffix(".0")):
        try:
            return planned[candidate]
        except KeyError:
            continue
    return None


def _kernel(module: nn.Module) -> str | None:
    """What runs a module: a kernel's name, "" if float arithmetic on floats, None if no layer."""
    if isinstance(module, tuple(_QUANTIZED)):
        operator = next(name for kind, name in _QUANTIZED.items() if isinstance(module, kind))
        fused = "_relu" if "ReLU" in type(module).__name__ else ""
        return f"int8 {operator}{fused} ({engine()})"
    if not isinstance(module, WEIGHTED) or not isinstance(module.weight, Tensor):
        return None
    return "float on int8 levels (reference)" if hasattr(module, "weight_scale") else ""


def _numel(module: nn.Module) -> int:
    weight: Any = module.weight
    return int((weight() if callable(weight) else weight).numel())


def integer_weight(module: nn.Module) -> Tensor:
    """The quantized weight tensor (torch.qint8) of a converted or reference layer."""
    if isinstance(module, tuple(_QUANTIZED)):
        packed: Any = module
        return packed.weight()
    weight: Tensor = module.get_quantized_weight()  # type: ignore[operator]
    return weight


def _from_integers(name: str, module: nn.Module, kernel: str) -> LayerRecord:
    """A record made of what the integers show, for models whose preparation was not audited."""
    weight = integer_weight(module)
    integers = weight.int_repr()
    axis = 0
    if weight.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
        axis = weight.q_per_channel_axis()
        rows = integers.movedim(axis, 0).flatten(1)
    else:
        rows = integers.reshape(1, -1)
    levels = max(int(row.unique().numel()) for row in rows)
    return LayerRecord(
        name,
        type(module).__name__,
        integers.numel(),
        True,
        spec=f"int8 grid, at most {levels} levels a channel",
        mac_bits=8,
        stored_bits=max(1, math.ceil(math.log2(levels))),
        kernel=kernel,
        reason="format guessed from the integers",
    )
