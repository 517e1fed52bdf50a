"""Widths of activations: which tensors need how many bits, and clamps for fewer than eight.

The multiplier's width concerns inputs of convolutions and linear layers. Everything else (the
image, the logits, addends of a residual sum) costs no multiplication and stays at 8 bits.
Stock conversion stores every activation as uint8 and saturates at 0 and 255 whatever width was
asked for, so a 4-bit tensor needs a clamp at 15 to be what training saw.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from zaq_fx._compat import is_watcher
from zaq_fx.followers import follow
from zaq_fx.readers import give_own_grid, readers
from zaq_plugin.fake_quantize import ActivationFakeQuantize, PWLQActivationFakeQuantize
from zaq_plugin.graph import attribute_at
from zaq_plugin.observers import MinMaxObserver
from zaq_plugin.student.fake_quantizers import integers_of, range_observer

Range = tuple[int, int]
_UINT8 = (0, 255)


def watcher_nodes(prepared: fx.GraphModule) -> Iterator[tuple[fx.Node, nn.Module]]:
    """The calls of activation observers and fake-quantizers, in order."""
    modules = dict(prepared.named_modules(remove_duplicate=False))
    for node in prepared.graph.nodes:
        if node.op == "call_module" and is_watcher(modules[str(node.target)]):
            yield node, modules[str(node.target)]


def keep_wide(prepared: fx.GraphModule, *, input_bits: int = 8, other_bits: int = 8) -> list[str]:
    """Give 8 bits to activations that no convolution or linear layer reads.

    A tensor that is multiplied, and read by something else as well (a residual trunk), gets 8 bits,
    and those who multiply a narrow grid of their own behind it, see `zaq_fx.readers`. The model's
    outputs get their whole range, too: clipped logits would tie for the top class.

    Call it on a freshly prepared model, before calibration. Watchers of other packages are left
    alone. Outputs on their input's grid are followers afterwards, see `zaq_fx.followers`.

    Args:
        prepared: From prepare_fx or prepare_qat_fx; changed in place.
        input_bits: Width of the model's inputs.
        other_bits: Width of tensors that are only added, pooled, or returned.

    Returns:
        Names of the watchers that were replaced or added.
    """
    modules = dict(prepared.named_modules(remove_duplicate=False))
    groups: dict[nn.Module, list[fx.Node]] = {}
    for node, watcher in watcher_nodes(prepared):
        groups.setdefault(watcher, []).append(node)
    changed = []
    for watcher, nodes in groups.items():
        read = readers(nodes, modules)
        apart = False
        if all(n.op == "placeholder" for node in nodes for n in node.all_input_nodes):
            bits = input_bits
        elif not read.multiplied:
            bits = other_bits
        elif read.others and not read.distant and _width(watcher) < other_bits:
            bits, apart = other_bits, True
        else:
            continue
        final = any(user.op == "output" for node in nodes for user in node.users)
        replacement = _with_bits(watcher, bits, whole=final)
        if replacement is None:
            continue
        if apart:
            changed += give_own_grid(prepared, read.products, watcher)
        for node in nodes:
            prepared.set_submodule(str(node.target), replacement)
            changed.append(str(node.target))
    follow(prepared)
    return changed


def _width(watcher: nn.Module) -> float:
    """Bits of an activation's grid; infinity for those of other packages."""
    observer = range_observer(watcher)
    return math.inf if observer is None else observer.bits


def _with_bits(watcher: nn.Module, bits: int, whole: bool) -> nn.Module | None:
    """A fresh watcher with another width; None for those of other packages.

    Args:
        whole: Observe the whole range instead of what the observer would clip it to.
    """
    inner = range_observer(watcher)
    if inner is None:
        return None
    arguments: dict[str, Any] = {
        "bits": bits,
        "symmetric": inner.symmetric,
        "dtype": inner.dtype,
        "eps": inner.eps,
    }
    kind = MinMaxObserver if whole else type(inner)
    if not whole:
        arguments |= inner.options()
    replacement: nn.Module
    if isinstance(watcher, ActivationFakeQuantize | PWLQActivationFakeQuantize):
        # PWLQ activations are simulated anyway: a wide tensor is uniform.
        learnable = isinstance(watcher, ActivationFakeQuantize) and watcher.learnable
        on = watcher.switches()[1]
        replacement = ActivationFakeQuantize(
            observer=kind, learnable=learnable, fake_quant=on, **arguments
        )
    else:
        replacement = kind(**arguments)
    return replacement.to(inner.min_val.device)


def narrow_ranges(prepared: fx.GraphModule) -> dict[tuple[float, int], Range]:
    """(scale, zero point) -> integer range of every calibrated activation below eight bits."""
    ranges: dict[tuple[float, int], Range] = {}
    for _, watcher in watcher_nodes(prepared):
        if isinstance(watcher, PWLQActivationFakeQuantize):
            continue
        integers = integers_of(watcher)
        if integers is None or integers == _UINT8 or watcher.dtype != torch.quint8:
            continue
        low, high = integers
        scale, zero_point = watcher.calculate_qparams()  # type: ignore[operator]
        key = (float(scale), int(zero_point))
        old = ranges.get(key, (low, high))
        ranges[key] = (min(old[0], low), max(old[1], high))
    return ranges


def clamp_narrow(
    converted: fx.GraphModule, ranges: dict[tuple[float, int], Range], *, reference: bool = False
) -> int:
    """Clamp every activation of fewer than 8 bits to its integers, as training saw it.

    Args:
        converted: From convert_fx or convert_to_reference_fx; changed in place.
        ranges: From `narrow_ranges` of the prepared model.
        reference: Whether it is a reference model: the clamp goes before the quantize node.

    Returns:
        Number of clamps inserted.
    """
    modules = dict(converted.named_modules(remove_duplicate=False))
    count = 0
    for node in list(converted.graph.nodes):
        grid = _output_grid(converted, node, modules)
        if grid is None or grid not in ranges:
            continue
        scale, zero_point = grid
        low, high = ((q - zero_point) * scale for q in ranges[grid])
        count += 1
        if reference:
            with converted.graph.inserting_before(node):
                clamp = converted.graph.call_function(torch.clamp, (node.args[0], low, high))
            node.update_arg(0, clamp)
            continue
        with converted.graph.inserting_after(node):
            clamp = converted.graph.call_function(torch.ops.quantized.clamp, (node, low, high))
        node.replace_all_uses_with(clamp, delete_user_cb=partial(operator.is_not, clamp))
    converted.recompile()
    return count


def _output_grid(
    converted: fx.GraphModule, node: fx.Node, modules: dict[str, nn.Module]
) -> tuple[float, int] | None:
    """(scale, zero point) that a node requantizes its output to; None if it does not."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        scale, zero_point = getattr(module, "scale", None), getattr(module, "zero_point", None)
        if not type(module).__module__.startswith("torch.ao.nn") or scale is None:
            return None
        return float(scale), int(zero_point)  # type: ignore[arg-type]
    if node.op != "call_function":
        return None
    values = {}
    for argument in (*node.args, *node.kwargs.values()):
        if isinstance(argument, fx.Node) and argument.op == "get_attr":
            name = str(argument.target)
            value = attribute_at(converted, name)
            if isinstance(value, torch.Tensor) and value.numel() == 1:
                values["zero_point" if "_zero_point_" in name else "scale"] = value
    if set(values) != {"scale", "zero_point"}:
        return None
    return float(values["scale"]), int(values["zero_point"])
