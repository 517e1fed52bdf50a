"""What has to happen to a model before FX quantization is right for all of it.

* Computed weights (weight_norm, spectral_norm, pruning) become plain ones.
* Norm-activation layers (timm's ``BatchNormAct2d``) are traced into a functional batch norm, which
  the host cannot fold: they become BatchNorm, dropout and activation one after the other.
* Layers and operators that the host lowers to something else stay float, see `zaq_fx.operators`.
* Writes into tensors become new tensors, see `zaq_fx.writes`.
* Functional ``F.conv2d`` and ``F.linear`` on a parameter bypass the host's weight handling: they
  become modules, see `zaq_fx.functional`.
* A layer called several times becomes a layer a call, see `zaq_fx.calls`.
* Identities between a layer and its activation go, so that the host fuses the two.
* Parameters of layers that functions read become the model's own, see `zaq_fx.functional`.
* A layer that is given one sample gets a batch axis, see `zaq_fx.calls`.
* Padding becomes numbers, transposed convolutions take their BatchNorm, see
  `zaq_fx.convolutions`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from zaq_fx.calls import add_batch_axes, single_samples, split_calls
from zaq_fx.convolutions import fold_transposed, pad_in_numbers
from zaq_fx.functional import (
    FUNCTIONAL,
    REMARK,
    functional_to_modules,
    has_functional_candidates,
    separate_parameters,
)
from zaq_fx.layers import trace
from zaq_fx.operators import give_affine, keep_layers_float, keep_operators_float
from zaq_fx.writes import without_writes
from zaq_plugin.layers import LAYERS
from zaq_plugin.ptq.bake import bake_parametrizations, copied
from zaq_plugin.ptq.wrappers import unwrapped
from zaq_plugin.student.assign import Classes, module_classes

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_MADE = "zaq_made"


@dataclass(frozen=True)
class Made:
    """What `prepare_model` did to a model.

    Attributes:
        classes: The classes that modules had before; see `module_classes`.
        copies: Layers that were added for further calls: name -> the layer they copy.
        remarks: What the audit says of layers that were changed: name -> remark.
    """

    classes: Mapping[str, Classes] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)


def prepare_model(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | None = None,
    *,
    inplace: bool = False,
) -> nn.Module:
    """Rewrite a float model so that stock FX quantization is right for all of it.

    Args:
        model: A float32 model, in the mode it is to be prepared in (eval for prepare_fx, train for
            prepare_qat_fx).
        example_inputs: What the model is called with. Needed where a layer is given one sample
            without its batch axis, which int8 kernels do not take.
        inplace: Rewrite this model instead of a copy.

    Returns:
        The model, computing the same function. A GraphModule if its graph had to be rewritten, else
        the same class as before.

    Raises:
        ValueError: half precision or complex weights, or none at all; functional layers in a model
            that cannot be traced; writes in place that cannot be told apart.
        TypeError: model is no module.
    """
    model = unwrapped(model)
    check_float32(model)
    model = model if inplace else copied(model)
    classes = module_classes(model)
    baked = bake_parametrizations(model)
    unwrap_norm_activations(model)
    keep_layers_float(model)
    give_affine(model)
    model, copies, read = _rewrite_graph(model, example_inputs)
    remarks = dict.fromkeys(read, REMARK)
    remarks |= dict.fromkeys(baked, "its computed weight (weight norm, pruning, ...) is a constant")
    for copy_name, original in copies.items():
        remarks[copy_name] = f"the same weight as '{original}', which is called more than once"
    object.__setattr__(model, _MADE, Made(classes, copies, remarks))
    return model


def _rewrite_graph(
    model: nn.Module, example_inputs: tuple[Any, ...] | None
) -> tuple[nn.Module, dict[str, str], list[str]]:
    """The model, or a GraphModule of it if one of the rewritings found something.

    Returns:
        Model, copies of layers by name, and layers whose parameters functions read.
    """
    functional = has_functional_candidates(model)
    try:
        traced = trace(model)
    except ValueError:
        if functional:
            raise
        return model, {}, []  # preparation will say so, or has a way of its own to trace it
    changed = without_writes(traced)
    if functional or any(n.target in FUNCTIONAL for n in traced.graph.nodes):
        functional, traced = True, functional_to_modules(traced)
    changed += drop_identities(traced)
    copies = split_calls(traced)
    read = separate_parameters(traced)
    changed += len(copies) + len(read) + keep_operators_float(traced)
    if example_inputs is not None:
        changed += add_batch_axes(traced, single_samples(traced, (tuple(example_inputs), {})))
    changed += pad_in_numbers(traced) + len(fold_transposed(traced))
    if not (functional or changed):
        return model, {}, []
    traced.graph.lint()
    traced.recompile()
    return traced, copies, read


def drop_identities(traced: fx.GraphModule) -> int:
    """Take identities behind layers out of a graph: the host fuses neighbours only.

    A BatchNorm that was folded leaves one between its convolution and the activation.
    """
    modules = dict(traced.named_modules())
    count = 0
    for node in list(traced.graph.nodes):
        source = node.args[0] if node.args else None
        if node.op != "call_module" or not isinstance(source, fx.Node):
            continue
        if source.op != "call_module" or type(modules[str(node.target)]) is not nn.Identity:
            continue
        if isinstance(modules[str(source.target)], LAYERS):
            node.replace_all_uses_with(source)
            traced.graph.erase_node(node)
            count += 1
    return count


def made_of(ready: nn.Module) -> Made:
    """What `prepare_model` did to a model; nothing, if it did not see it."""
    made: Made = getattr(ready, _MADE, Made())
    return made


def check_float32(model: nn.Module) -> None:
    """Refuse models that torch.ao's kernels cannot take.

    Raises:
        TypeError: model is no module.
        ValueError: a parameter is not float32.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}.")
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise ValueError(
                f"parameter '{name}' is {parameter.dtype}, but torch.ao quantizes float32 models "
                "only. Call model.float() first."
            )


def unwrap_norm_activations(model: nn.Module) -> list[str]:
    """Replace fused norm-activation layers by their parts, in place; returns their names.

    A norm-activation layer is a subclass of a BatchNorm with a module ``act`` (and maybe ``drop``).
    The parts are the very same parameters, buffers and submodules.
    """
    names = []
    for name, module in list(model.named_modules()):
        base = next((b for b in _BATCH_NORMS if isinstance(module, b)), None)
        if base is None or type(module) is base or not name:
            continue
        children = dict(module._modules)
        if children.get("act") is None:
            continue
        norm = base.__new__(base)
        norm.__dict__ = dict(module.__dict__)
        norm._modules = {}
        norm._parameters = dict(module._parameters)
        norm._buffers = dict(module._buffers)
        parts = nn.Sequential()
        parts.add_module("norm", norm)
        for part in ("drop", "act"):
            extra = children.get(part)
            if extra is not None and not isinstance(extra, nn.Identity):
                parts.add_module(part, extra)
        parts.train(module.training)
        model.set_submodule(name, parts)
        names.append(name)
    return names


__all__ = [
    "FUNCTIONAL",
    "check_float32",
    "functional_to_modules",
    "made_of",
    "prepare_model",
    "unwrap_norm_activations",
]
