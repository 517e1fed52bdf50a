"""Parameters of layers that functions read, too: they become the model's own.

The host takes a layer's float parameters away when it folds or converts it; what reads them in the
graph would fail there, or read a folded weight.
"""

from __future__ import annotations

from torch import fx

from zaq_fx.tracing import free_name
from zaq_plugin.graph import attribute_at

REMARK = "a function reads its parameters, too: that has the float values"


def separate_parameters(traced: fx.GraphModule) -> list[str]:
    """Let functions read parameters of the model itself, the very same, in place of a layer's.

    Returns:
        Names of the layers.
    """
    called = {str(node.target) for node in traced.graph.nodes if node.op == "call_module"}
    own: dict[str, str] = {}
    owners: dict[str, None] = {}
    for node in traced.graph.nodes:
        owner = str(node.target).rpartition(".")[0]
        if node.op != "get_attr" or not called.intersection(_around(owner)):
            continue
        target = str(node.target)
        if target not in own:
            own[target] = free_name(traced, target.replace(".", "_"))
            setattr(traced, own[target], attribute_at(traced, target))
        node.target = own[target]
        owners[owner] = None
    return list(owners)


def _around(name: str) -> list[str]:
    """A module's name, and those of the modules around it."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
