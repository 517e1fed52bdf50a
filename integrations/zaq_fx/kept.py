"""Layers and operators that stay float, because the host's int8 form of them is wrong.

The host takes every module of torch.nn for its own and lowers it by its exact type. A module inside
`KeptFloat` is a leaf of a type that the host does not know: it computes in float between a
dequantize and a quantize node, in training and after conversion, and the audit lists it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
