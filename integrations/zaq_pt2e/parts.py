"""Parts of a model that run under a switch, put into the graph itself.

What runs under ``torch.no_grad`` or ``torch.autocast`` becomes a graph of its own in torch.export,
which no host looks into: its layers would stay float, and nobody would say so.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.fx import GraphModule, Node, map_arg

from zaq_plugin.graph import attribute_at
from zaq_pt2e._compat import WRAPPERS
from zaq_pt2e.graph import WEIGHTED, put_tensor

_AUTOCAST, _GRADIENTS = WRAPPERS


def inline_parts(model: GraphModule) -> int:
    """Put parts under a gradient switch or a switched-off ``torch.autocast`` into the graph itself.

    The function stays the same. Parameters that are read under ``torch.no_grad`` alone need no
    gradient afterwards. A part under an active autocast without layers stays what it is.

    Args:
        model: ``ExportedProgram.module()``; changed in place.

    Returns:
        How many parts there were.

    Raises:
        ValueError: layers run under an active ``torch.autocast``.
    """
    count = 0
    refused: set[Node] = set()
    while True:
        waiting = [n for n in model.graph.nodes if _kind(n) is not None and n not in refused]
        if not waiting:
            break
        _freeze(model)
        for node in waiting:
            if _casts(model, node):
                refused.add(node)
            else:
                _inline(model, node)
                count += 1
    if count:
        model.graph.eliminate_dead_code()
        model.graph.lint()
        model.recompile()
    return count


def hidden_parts(model: GraphModule, path: str = "") -> Iterator[tuple[str, str, GraphModule]]:
    """Graphs within a graph, nested ones too: the operator that runs it, its path, the graph.

    What is left of them after `inline_parts` are branches and loops: ``torch.cond`` and others.
    """
    for node in model.graph.nodes:
        if node.op != "call_function" or not isinstance(
            node.target, torch._ops.HigherOrderOperator
        ):
            continue
        for used in node.all_input_nodes:
            part = _part(model, used) if used.op == "get_attr" else None
            if part is not None:
                yield node.target.name(), f"{path}{used.target}", part
                yield from hidden_parts(part, f"{path}{used.target}.")


def _kind(node: Node) -> str | None:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.HigherOrderOperator):
        return None
    name = node.target.name()
    return name if name in WRAPPERS else None


def _part(model: GraphModule, place: Node) -> GraphModule | None:
    try:
        module = model.get_submodule(str(place.target))
    except AttributeError:  # a tensor
        return None
    return module if isinstance(module, GraphModule) else None


def _casts(model: GraphModule, node: Node) -> bool:
    """Whether a part computes in another type than float32; an error if layers are in it."""
    if _kind(node) != _AUTOCAST:
        return False
    device, dtype, enabled = node.args[:3]
    here = next((t.device.type for t in (*model.parameters(), *model.buffers())), "cpu")
    if not enabled or device != here:
        return False
    place = node.args[WRAPPERS[_AUTOCAST]]
    part = _part(model, place) if isinstance(place, Node) else None
    if part is not None and any(n.target in WEIGHTED for n in part.graph.nodes):
        raise ValueError(
            f"layers run under torch.autocast({device!r}, {dtype}), but int8 kernels work with "
            "float32 models. Export the model without autocast, or with enabled=False."
        )
    return True


def _freeze(model: GraphModule) -> None:
    """Let parameters that only parts without gradients read need none."""
    readers: dict[str, set[Node]] = {}
    for node in model.graph.nodes:
        if node.op == "get_attr":
            readers.setdefault(str(node.target), set()).update(node.users)
    for target, users in readers.items():
        if not users or not all(_kind(u) == _GRADIENTS and u.args[0] is False for u in users):
            continue
        value = attribute_at(model, target)
        if isinstance(value, nn.Parameter) and value.requires_grad:
            # A new object on the same memory: the tensor may be the user's.
            put_tensor(model, target, nn.Parameter(value.detach(), requires_grad=False))


def _inline(model: GraphModule, node: Node) -> None:
    kind = _kind(node)
    switches = WRAPPERS[str(kind)]
    place = node.args[switches]
    part = _part(model, place) if isinstance(place, Node) else None
    if part is None or not isinstance(place, Node):
        raise ValueError(f"{node.name}: expected {kind} to call a graph; got {place!r}.")
    inputs = [n for n in part.graph.nodes if n.op == "placeholder"]
    values: dict[Node, Node] = dict(
        zip(inputs, node.args[switches + 1 :], strict=True)  # type: ignore[arg-type]
    )
    results: object = None
    with model.graph.inserting_before(node):
        for inner in part.graph.nodes:
            if inner.op == "placeholder":
                continue
            if inner.op == "output":
                results = map_arg(inner.args[0], values.__getitem__)
                break
            copied = model.graph.node_copy(inner, values.__getitem__)
            if inner.op in ("get_attr", "call_module"):
                copied.target = f"{place.target}.{inner.target}"
            values[inner] = copied
    if isinstance(results, Node):
        node.replace_all_uses_with(results)
    elif isinstance(results, tuple | list):
        for user in list(node.users):  # getitem
            user.replace_all_uses_with(results[user.args[1]])  # type: ignore[index]
            model.graph.erase_node(user)
    model.graph.erase_node(node)
    if not place.users:
        model.graph.erase_node(place)
