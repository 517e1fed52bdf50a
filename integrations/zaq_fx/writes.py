"""Operators that write into a tensor become operators that make a new one.

The host puts its observers and grids on values, and a value written into later is another one
after it: ``y.add_(1)`` is lost as soon as ``y`` is dequantized for the next reader.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from zaq_plugin.graph import name_of_target

_VIEW_METHODS = {
    "T",
    "chunk",
    "contiguous",
    "detach",
    "diagonal",
    "expand",
    "expand_as",
    "flatten",
    "movedim",
    "narrow",
    "permute",
    "reshape",
    "select",
    "split",
    "squeeze",
    "swapaxes",
    "t",
    "transpose",
    "unbind",
    "unflatten",
    "unsqueeze",
    "view",
    "view_as",
}
_VIEW_FUNCTIONS = {operator.getitem} | {
    getattr(torch, name) for name in _VIEW_METHODS if hasattr(torch, name)
}
_VIEW_MODULES = (nn.Flatten, nn.Unflatten)
_SAME_MODULES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_SIZES = {"size", "dim", "numel", "ndimension", "stride", "is_floating_point"}
_WITHOUT_KERNEL = {"sigmoid_", "tanh_", "hardsigmoid_"}
"""Methods that the host calls on an int8 tensor, which knows them only without the write."""
_METHOD_FUNCTIONS = {"add": torch.add, "mul": torch.mul}


def with_item(x: Tensor, index: Any, value: Any) -> Tensor:
    """A copy of x with ``x[index] = value``."""
    copied = x.clone()
    copied[index] = value
    return copied


fx.wrap("with_item")


def without_writes(traced: fx.GraphModule) -> int:
    """Replace writes by new values, in place; the model computes the same.

    Returns:
        How many nodes were rewritten. Writes into what nobody reads later are left as they are.

    Raises:
        ValueError: a write into one of several views of a tensor that are read later.
    """
    count = 0
    for node in list(traced.graph.nodes):
        written = _written(traced, node)
        if written is not None and _rewrite(traced, node, written):
            count += 1
    return count


def _written(traced: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The value that a node writes into, or None."""
    first = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(first, fx.Node):
        return None
    target: Any = node.target
    if node.op == "call_method":
        return first if _plain_method(target) else None
    if node.op == "call_module":
        return first if getattr(traced.get_submodule(target), "inplace", False) is True else None
    if node.op == "call_function":
        if _plain_function(target) is not None:
            return first
        if node.kwargs.get("inplace") is True:
            return first
    return None


def _plain_method(name: str) -> str | None:
    """The method without the write: ``add`` for ``add_``."""
    plain = name[:-1]
    if not name.endswith("_") or name.endswith("__") or not hasattr(Tensor, plain):
        return None
    return None if name in ("requires_grad_", "squeeze_", "unsqueeze_") else plain


def _plain_function(function: Any) -> Any:
    """The function without the write: ``torch.relu`` for ``torch.relu_``."""
    name = name_of_target(function)
    if not name.endswith("_") or name.endswith("__"):
        return None
    for home in (torch, functional):
        if getattr(home, name, None) is function:
            return getattr(home, name[:-1], None)
    return None


def _rewrite(traced: fx.GraphModule, node: fx.Node, written: fx.Node) -> bool:
    order = {n: i for i, n in enumerate(traced.graph.nodes)}

    def later(value: fx.Node) -> list[fx.Node]:
        return [u for u in value.users if order.get(u, -1) > order[node] and not _only_sizes(u)]

    modules = dict(traced.named_modules(remove_duplicate=False))
    same = _same(written, modules)
    bases = _same(_base(written, modules), modules)
    whole = written in bases
    touched = {v for base in bases for v in _views(base, modules)}
    stale = [v for v in touched if order[v] < order[node] and v not in same | bases and later(v)]
    readers = {value: later(value) for value in same | bases}
    is_read = any(readers.values())
    item = written.op == "call_function" and written.target is operator.getitem
    direct = item and written.args[0] in bases and isinstance(written.args[0], fx.Node)
    from_list = direct and _many(written.args[0], modules)  # type: ignore[arg-type]
    base_is_read = any(readers[value] for value in bases)
    if stale or (not whole and base_is_read and (not direct or from_list)):
        other = stale[0] if stale else next(iter(bases))
        raise ValueError(
            f"'{node.name}' writes in place into '{written.name}', of which '{other.name}' is "
            "another view that is read later. torch.ao quantizes every value for itself and would "
            "lose what was written; compute a new tensor instead of writing in place."
        )
    if not is_read and node.target not in _WITHOUT_KERNEL:
        return False
    fresh = _fresh(traced, node)
    if not whole and base_is_read:
        base: Any = written.args[0]
        with traced.graph.inserting_after(fresh):
            call = traced.graph.call_function(with_item, (base, written.args[1], fresh))
            call.meta["is_wrapped"] = True
        for value in bases:
            _redirect(value, readers[value], call)
    for value in same:
        _redirect(value, readers[value], fresh)
    if fresh is not node:
        node.replace_all_uses_with(fresh)
        traced.graph.erase_node(node)
    return True


def _fresh(traced: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The node in a form that writes nothing, placed right behind it; or the node itself."""
    graph = traced.graph
    target: Any = node.target
    if node.op == "call_module" or node.kwargs.get("inplace") is True:
        return node  # its value is what was written; the host's kernels know the flag
    with graph.inserting_after(node):
        if node.op == "call_function":
            return graph.call_function(_plain_function(target), node.args, node.kwargs)
        plain = str(_plain_method(target))
        function: Any = _METHOD_FUNCTIONS.get(plain)
        if function is not None:
            return graph.call_function(function, node.args, node.kwargs)
        return graph.call_method(plain, node.args, node.kwargs)


def _redirect(value: fx.Node, readers: Iterable[fx.Node], to: fx.Node) -> None:
    for reader in readers:
        if reader is not to:
            reader.replace_input_with(value, to)


def _only_sizes(node: fx.Node) -> bool:
    """Whether a node asks for a tensor's shape and not for its values."""
    if node.op == "call_method":
        return str(node.target) in _SIZES
    return node.op == "call_function" and node.target is getattr


def _is_view(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_method":
        return str(node.target) in _VIEW_METHODS
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], _VIEW_MODULES)
    return node.op == "call_function" and node.target in _VIEW_FUNCTIONS


def _is_same(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node hands its input on as it is."""
    if node.op != "call_module":
        return False
    module = modules[str(node.target)]
    passes = isinstance(module, nn.Identity) or not module.training
    return isinstance(module, _SAME_MODULES) and passes


def _many(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node's value is several tensors."""
    names = ("chunk", "split", "unbind")
    called = node.op in ("call_method", "call_function")
    return called and name_of_target(node.target) in names


def _source(node: fx.Node) -> Any:
    return node.args[0] if node.args else None


def _base(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node:
    """What a view looks into."""
    while _is_view(node, modules) or _is_same(node, modules):
        source = _source(node)
        if not isinstance(source, fx.Node):
            break
        node = source
    return node


def _same(node: fx.Node, modules: dict[str, nn.Module]) -> set[fx.Node]:
    """All names of one tensor: the node, and what hands it on."""
    while _is_same(node, modules) and isinstance(_source(node), fx.Node):
        node = _source(node)
    nodes, stack = {node}, [node]
    while stack:
        for user in stack.pop().users:
            if user not in nodes and _is_same(user, modules):
                nodes.add(user)
                stack.append(user)
    return nodes


def _views(node: fx.Node, modules: dict[str, nn.Module]) -> set[fx.Node]:
    """All views of a tensor, and views of them."""
    views: set[fx.Node] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        for user in current.users:
            looks = _is_view(user, modules) or _is_same(user, modules)
            if looks and _source(user) is current and user not in views:
                views.add(user)
                stack.append(user)
    return views
