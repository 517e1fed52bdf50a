"""Layers and operators that stay float, because the host's int8 form of them is wrong.

The host takes every module of torch.nn for its own and lowers it by its exact type. A module inside
`KeptFloat` is a leaf of a type that the host does not know: it computes in float between a
dequantize and a quantize node, in training and after conversion, and the audit lists it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from zaq_fx._compat import LeafModule


class KeptFloat(LeafModule):
    """One module, computed in float.

    Args:
        module: The module; it becomes the child ``"0"``.
        reason: Why it stays float, for the audit.
        listed: Whether the audit lists it: not what only wants a grid of its own.
    """

    def __init__(self, module: nn.Module, reason: str, listed: bool = True) -> None:
        super().__init__(module)
        self.reason, self.listed = reason, listed
        self.train(module.training)

    def __getattr__(self, name: str) -> Any:
        """The module's parameters and buffers are read under its own name, too."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            inner = self.__dict__["_modules"].get("0")
            tensors = {} if inner is None else {**inner._parameters, **inner._buffers}
            if name not in tensors:
                raise
            return getattr(inner, name)  # as the tracer reads it

    @property
    def kind(self) -> str:
        """The type of the module inside, or its function's name."""
        inner = self[0]
        return inner.name if isinstance(inner, Call) else type(inner).__name__


class KeptCall(KeptFloat):
    """A function's call, computed in float; any arguments."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The function's value."""
        return self[0](*args, **kwargs)


class Call(nn.Module):
    """A function as a module.

    Args:
        function: Any function that can be imported.
        name: What the audit calls it.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        super().__init__()
        self.function, self.name = function, name

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The function's value."""
        return self.function(*args, **kwargs)

    def extra_repr(self) -> str:
        """The function's name."""
        return self.name


def unwrap(converted: fx.GraphModule) -> None:
    """Put the plain modules and functions back in place: after conversion nobody mistakes them."""
    for node in list(converted.graph.nodes):
        if node.op != "call_module":
            continue
        module = converted.get_submodule(str(node.target))
        if not isinstance(module, KeptFloat):
            continue
        inner = module[0]
        if not isinstance(inner, Call):
            converted.set_submodule(str(node.target), inner)
            continue
        with converted.graph.inserting_before(node):
            call = converted.graph.call_function(inner.function, node.args, node.kwargs)
        node.replace_all_uses_with(call)
        converted.graph.erase_node(node)
    converted.delete_all_unused_submodules()
    converted.recompile()


# ---- Concatenations in int8 ----------------------------------------------------------------------
#
# The host's own lowering concatenates the integers as they are and hopes for one grid.


def lower_concatenations(converted: fx.GraphModule) -> int:
    """Turn dequantize, concatenation in float, quantize into ``quantized.cat``; in place.

    Args:
        converted: From convert_fx. Concatenations with a float input, or that nothing quantizes
            behind, stay as they are.

    Returns:
        How many were turned.
    """
    modules = dict(converted.named_modules(remove_duplicate=False))
    count = 0
    for node in list(converted.graph.nodes):
        if node.op != "call_function" or node.target is not torch.quantize_per_tensor:
            continue
        joined, scale, zero_point, dtype = node.args
        if dtype is not torch.quint8 or not isinstance(joined, fx.Node):
            continue
        parts = _concatenation(joined, modules)
        if parts is None:
            continue
        tensors, dim = parts
        if not all(_dequantized(t) for t in tensors):
            continue
        integers = [t.args[0] for t in tensors]
        with converted.graph.inserting_before(node):
            call = converted.graph.call_function(
                torch.ops.quantized.cat, (integers, dim, scale, zero_point)
            )
        node.replace_all_uses_with(call)
        converted.graph.erase_node(node)
        count += 1
    converted.graph.eliminate_dead_code()
    converted.recompile()
    return count


def _concatenation(node: fx.Node, modules: dict[str, Any]) -> tuple[list[fx.Node], int] | None:
    """Inputs and axis of a concatenation in float; None if the node is none."""
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    if not isinstance(module, KeptCall) or module[0].function is not torch.cat:
        return None
    tensors = node.args[0] if node.args else node.kwargs.get("tensors")
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    if not isinstance(tensors, tuple | list) or not isinstance(dim, int):
        return None
    return list(tensors), dim


def _dequantized(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_method" and node.target == "dequantize"
