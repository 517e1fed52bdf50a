"""A layer that is called several times becomes one layer a call, all on the same parameters.

The host folds a BatchNorm into the one module that all calls share, once for every call, and keeps
one output grid a module, whatever each call's signal is.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase

from zaq_fx.layers import WEIGHTED
from zaq_fx.tracing import free_name
from zaq_plugin.student.fake_quantizers import carried_quantizer

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
        specs = [getattr(q, "spec", None) for q in quantizers]
        weights: list[Any] = [m.weight for m in pair]  # type: ignore[union-attr]
        if specs[0] != specs[1] or not isinstance(weights[0], torch.Tensor):
            continue
        if weights[0] is weights[1]:
            pair[0].weight_fake_quant = quantizers[1]  # type: ignore[union-attr]
            done.append(copy_name)
    return done
