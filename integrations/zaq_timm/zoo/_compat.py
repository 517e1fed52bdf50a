"""Undocumented habits of torch.export that the zoo leans on; tests pin each of them."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node, map_arg

WRAPPERS = {
    "wrap_with_autocast": 4,
    "wrap_with_set_grad_enabled": 1,
}
"""Operators that call a part of the model under a switch, and how many arguments set the switch.
After those comes the part (a graph module), then its inputs."""


def inline_wrapped_parts(model: GraphModule) -> int:
    """Puts parts that ran under ``torch.autocast`` or a gradient switch into the graph itself.

    Such a part is a graph of its own, in which nobody looks for layers. In a float32 model on a
    machine without autocast, which is what the zoo quantizes, the switches do nothing.

    Args:
        model: ``ExportedProgram.module()``; changed in place, its function is not.

    Returns:
        How many parts there were.
    """
    found = 0
    while True:
        node = next((n for n in model.graph.nodes if _switches(n) is not None), None)
        if node is None:
            break
        _inline(model, node)
        found += 1
    if found:
        model.graph.eliminate_dead_code()
        model.graph.lint()
        model.recompile()
    return found


def _switches(node: Node) -> int | None:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.HigherOrderOperator):
        return None
    return WRAPPERS.get(node.target.name())


def _inline(model: GraphModule, node: Node) -> None:
    switches = _switches(node)
    assert switches is not None
    place = node.args[switches]
    assert isinstance(place, Node)
    part = model.get_submodule(str(place.target))
    assert isinstance(part, GraphModule)
    inputs = [n for n in part.graph.nodes if n.op == "placeholder"]
    values: dict[Node, Node] = dict(
        zip(inputs, node.args[switches + 1 :], strict=True)  # type: ignore[arg-type]
    )
    with model.graph.inserting_before(node):
        for inner in part.graph.nodes:
            if inner.op == "placeholder":
                continue
            if inner.op == "output":
                results = map_arg(inner.args[0], values.__getitem__)
                break
            copied = model.graph.node_copy(inner, values.__getitem__)
            if inner.op == "get_attr":
                copied.target = f"{place.target}.{inner.target}"
            values[inner] = copied
    if isinstance(results, Node):
        node.replace_all_uses_with(results)
    else:
        for user in list(node.users):  # getitem
            user.replace_all_uses_with(results[user.args[1]])
            model.graph.erase_node(user)
    model.graph.erase_node(node)
    if not place.users:
        model.graph.erase_node(place)
