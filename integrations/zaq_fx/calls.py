"""How layers are called: once each, and with a batch axis, as the host wants it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase

from zaq_fx.layers import WEIGHTED, free_name, layers_of, root_of
from zaq_plugin.layers import LAYERS
from zaq_plugin.student.batches import Call, as_call, fresh, inputs_of, taking
from zaq_plugin.student.fake_quantizers import carried_quantizer, is_weight_quantizer
from zaq_plugin.student.modes import evaluating

# ---- Layers that are called several times ---------------------------------------------------
#
# The host folds a BatchNorm into the one module that all calls share, once for every call, and
# keeps one output grid a module, whatever each call's signal is.

_WITH_A_GRID = (
    *WEIGHTED,
    _NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.ELU,
    nn.LeakyReLU,
    nn.Hardswish,
)
"""Modules that the host folds, or that hold their output's grid after conversion."""


def split_calls(traced: fx.GraphModule) -> dict[str, str]:
    """Give every further call of a layer its own shallow copy, in place.

    Returns:
        New name -> name of the layer that it is a copy of.
    """
    modules = dict(traced.named_modules(remove_duplicate=False))
    first: dict[int, str] = {}
    copies: dict[str, str] = {}
    for node in traced.graph.nodes:
        if node.op != "call_module":
            continue
        name = str(node.target)
        module = modules[name]
        if not isinstance(module, _WITH_A_GRID):
            continue
        if id(module) not in first:
            first[id(module)] = name
            continue
        original = first[id(module)]
        number = 2 + sum(value == original for value in copies.values())
        copy_name = free_name(traced, f"{original}_call{number}")
        traced.set_submodule(copy_name, _shallow(module))
        node.target = copy_name
        copies[copy_name] = original
    return copies


def _shallow(module: nn.Module) -> nn.Module:
    """A module of its own with the very same parameters and buffers."""
    twin = copy.copy(module)
    twin._parameters = dict(module._parameters)
    twin._buffers = dict(module._buffers)
    twin._modules = dict(module._modules)
    return twin


def share_weight_quantizers(prepared: nn.Module, copies: Mapping[str, str]) -> list[str]:
    """Let the copies of a layer use its weight's fake-quantizer where the weight is the same.

    Trained levels would drift apart otherwise. A BatchNorm behind makes it another weight.

    Args:
        prepared: From prepare_qat_fx; changed in place.
        copies: From `split_calls`.

    Returns:
        Names of the copies that share.
    """
    done = []
    modules = dict(prepared.named_modules(remove_duplicate=False))
    for copy_name, original in copies.items():
        pair = [modules.get(name) for name in (copy_name, original)]
        quantizers: list[Any] = [carried_quantizer(m) for m in pair]
        if any(q is None or hasattr(m, "bn") for m, q in zip(pair, quantizers, strict=True)):
            continue
        specs = [q.spec if is_weight_quantizer(q) else None for q in quantizers]
        weights: list[Any] = [m.weight for m in pair]  # type: ignore[union-attr]
        if specs[0] != specs[1] or not isinstance(weights[0], torch.Tensor):
            continue
        if weights[0] is weights[1]:
            pair[0].weight_fake_quant = quantizers[1]  # type: ignore[union-attr]
            done.append(copy_name)
    return done


# ---- Layers that are given one sample without its batch axis -------------------------------------
#
# torch computes with a vector in a linear layer and with a single image in a convolution; the int8
# kernels of both want the batch axis, and say so in the converted model only.

Shapes = dict[str, tuple[int, ...]]


def single_samples(model: nn.Module, call: Call) -> Shapes:
    """Layers whose input has no batch axis, and its shape, found by one run in evaluation mode."""
    shapes: Shapes = {}
    with evaluating(model), _watching(model, shapes), taking(model, call):
        args, kwargs = fresh(call)
        model(*args, **kwargs)
    return shapes


@contextmanager
def _watching(model: nn.Module, shapes: Shapes) -> Iterator[None]:
    handles = []
    for name, module in model.named_modules():
        root = root_of(module) if name else None
        if root is None:
            continue
        weight: Any = root.weight
        least = 2 if isinstance(root, nn.Linear) else weight.dim()

        def look(_: nn.Module, args: Any, name: str = name, least: int = least) -> None:
            if args and isinstance(args[0], Tensor) and args[0].dim() < least:
                shapes[name] = tuple(args[0].shape)

        handles.append(module.register_forward_pre_hook(look))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def add_batch_axes(traced: fx.GraphModule, names: Shapes) -> int:
    """Give these layers a batch axis in front, and take it away behind them, in place."""
    count = 0
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or str(node.target) not in names:
            continue
        if not isinstance(traced.get_submodule(str(node.target)), LAYERS):
            continue
        with traced.graph.inserting_before(node):
            batch = traced.graph.call_function(torch.unsqueeze, (node.args[0], 0))
        node.args = (batch, *node.args[1:])
        with traced.graph.inserting_after(node):
            sample = traced.graph.call_function(torch.squeeze, (node, 0))
        node.replace_all_uses_with(sample, delete_user_cb=lambda user, own=sample: user is not own)
        count += 1
    return count


def require_batches(prepared: fx.GraphModule, batches: Sequence[Any]) -> None:
    """Refuse a prepared model whose int8 kernels would refuse inputs such as the first batch.

    Raises:
        ValueError: a layer that becomes int8 is given a sample without its batch axis.
    """
    if not batches:
        return
    quantized = {layer.name for layer in layers_of(prepared) if layer.spec is not None}
    shapes = single_samples(prepared, as_call(batches[0], inputs_of(prepared)))
    for name in quantized & set(shapes):
        raise ValueError(
            f"layer '{name}' is given a tensor of shape {shapes[name]}, one sample without its "
            "batch axis, which torch's int8 kernels do not take. Pass what the model is called "
            "with, prepare_model(model, example_inputs), which adds the axis; or use "
            "zaq_fx.prepare"
        )
