"""Reading and editing exported graphs: layers, names, constants."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from zaq_plugin.graph import attribute_at

_aten = torch.ops.aten

CONVOLUTIONS = {
    _aten.conv1d.default: "Conv1d",
    _aten.conv1d.padding: "Conv1d",
    _aten.conv2d.default: "Conv2d",
    _aten.conv2d.padding: "Conv2d",
    _aten.conv3d.default: "Conv3d",
    _aten.conv3d.padding: "Conv3d",
}
TRANSPOSED = {
    _aten.conv_transpose1d.default: "ConvTranspose1d",
    _aten.conv_transpose2d.input: "ConvTranspose2d",
    _aten.conv_transpose3d.input: "ConvTranspose3d",
}
LINEAR = {_aten.linear.default: "Linear"}
WEIGHTED = {**CONVOLUTIONS, **TRANSPOSED, **LINEAR}
"""aten operators with arguments (input, weight, bias, ...), and the word for each in reports."""

NOTE = "zaq_pt2e"
"""Key of our notes within ``node.meta["custom"]``, which torch.export keeps."""


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer of an exported graph.

    Attributes:
        name: Its module's path, or its weight's where the operator is called directly.
        kind: ``Conv2d``, ``Linear`` ...
        node: The operator's node.
        path: Path of the module in which the operator is called ("" at the top).
        modules: (path, class) of the modules around it, from the outside in.
        original: The name to look settings up by. It differs from the name where one layer is
            called several times with different BatchNorms behind: ``head``, ``head.call_2``.
    """

    name: str
    kind: str
    node: Node
    path: str
    modules: tuple[tuple[str, str], ...]
    original: str

    @property
    def ch_axis(self) -> int:
        """Axis of the weight's output channels.

        A transposed convolution's weight is (in, out / groups, ...). In a depthwise one the first
        axis counts the output channels; in other grouped ones no axis does, and the second is
        shared by the groups.
        """
        return 1 if self.node.target in TRANSPOSED and not _is_depthwise(self.node) else 0

    @property
    def shares_grids(self) -> bool:
        """Whether output channels of several groups lie along one step of `ch_axis`."""
        return self.node.target in TRANSPOSED and _groups(self.node) > 1 and self.ch_axis == 1


def layers(model: GraphModule) -> Iterator[Layer]:
    """All convolutions and linear layers, in the graph's order; one for each call."""
    for node in model.graph.nodes:
        if node.op == "call_function" and node.target in WEIGHTED:
            modules = module_stack(node)
            path = modules[-1][0] if modules else ""
            note = note_of(node)
            name = note.get("name") or _layer_name(node, path)
            original = note.get("original") or name
            yield Layer(name, WEIGHTED[node.target], node, path, modules, original)


def _groups(node: Node) -> int:
    """Groups of a transposed convolution."""
    return int(argument(node, 6) or 1)


def _is_depthwise(node: Node) -> bool:
    """Whether a transposed convolution has as many groups as inputs and outputs."""
    source, groups = argument(node, 0), _groups(node)
    values = [n.meta.get("val") for n in (source, node) if isinstance(n, Node)]
    axis = -2 if node.target is _aten.conv_transpose1d.default else None
    if axis is None:
        axis = -3 if node.target is _aten.conv_transpose2d.input else -4
    return groups > 1 and all(isinstance(v, Tensor) and v.shape[axis] == groups for v in values)


def module_stack(node: Node) -> tuple[tuple[str, str], ...]:
    """(path, qualified class name) of the modules around a node, from the outside in."""
    return tuple(
        (str(path), cls if isinstance(cls, str) else f"{cls.__module__}.{cls.__qualname__}")
        for path, cls in node.meta.get("nn_module_stack", {}).values()
    )


def _layer_name(node: Node, path: str) -> str:
    attribute = root_attribute(argument(node, 1))
    if attribute is None:
        return path or node.name
    return layer_of(attribute)


def layer_of(attribute: str) -> str:
    """Name of the layer that a weight belongs to: its own, but for ``.weight``."""
    return attribute.split(".parametrizations.")[0].removesuffix(".weight")


def root_attribute(node: object) -> str | None:
    """Name of the tensor that a node reads, through operators with one tensor (views and so on)."""
    while isinstance(node, Node):
        if node.op == "get_attr":
            return str(node.target)
        inputs = node.all_input_nodes
        node = inputs[0] if inputs and node.op in ("call_function", "call_module") else None
    return None


def argument(node: Node, position: int) -> Any:
    """An argument by position, None where it is left out."""
    return node.args[position] if len(node.args) > position else None


def set_argument(node: Node, position: int, value: Any) -> None:
    """Set an argument by position; left out ones before it become None."""
    args = list(node.args)
    args += [None] * (position + 1 - len(args))
    args[position] = value
    node.args = tuple(args)


def class_named(name: str) -> type | None:
    """The class of a qualified name from a module stack, if its module is imported."""
    module, _, qualified = name.rpartition(".")
    while module:
        if module in sys.modules:
            namespace: Any = sys.modules[module]
            for part in qualified.split("."):
                namespace = getattr(namespace, part, None)
            return namespace if isinstance(namespace, type) else None
        module, _, head = module.rpartition(".")
        qualified = f"{head}.{qualified}"
    return None


# ---- notes ---------------------------------------------------------------------------------------


def note_of(node: Node) -> dict[str, Any]:
    """What we wrote on a node earlier."""
    return dict(node.meta.get("custom", {}).get(NOTE, {}))


def add_note(node: Node, **values: Any) -> None:
    """Write on a node. Deep copies of a graph share these dictionaries, so they are replaced."""
    custom = node.meta.get("custom", {})
    node.meta["custom"] = {**custom, NOTE: {**custom.get(NOTE, {}), **values}}


# ---- tensors -------------------------------------------------------------------------------------


def tensor_at(model: nn.Module, target: str) -> Tensor:
    """The parameter or buffer of a dotted name.

    Raises:
        TypeError: it is something else.
    """
    value = attribute_at(model, target)
    if not isinstance(value, Tensor):
        raise TypeError(f"'{target}' is no tensor but {type(value).__name__}.")
    return value


def put_tensor(model: nn.Module, target: str, value: Tensor) -> None:
    """Put a parameter or (for a plain tensor) a buffer at a dotted name; modules are made."""
    parent, _, name = target.rpartition(".")
    owner: nn.Module = model
    for part in parent.split(".") if parent else ():
        inner = _attribute(owner, part)
        if not isinstance(inner, nn.Module):
            inner = nn.Module()
            owner.add_module(part, inner)
        owner = inner
    if _attribute(owner, name) is not _NOTHING:
        delattr(owner, name)
    if isinstance(value, nn.Parameter):
        owner.register_parameter(name, value)
    else:
        owner.register_buffer(name, value)


def new_tensor(model: GraphModule, like: str, value: Tensor, before: Node) -> Node:
    """A get_attr node for a new tensor, named ``like`` or, if that is taken, with a number."""
    if not _free(model, like):  # a tensor stands where a module would have to
        like = like.replace(".", "_")
    name, number = like, 0
    while _exists(model, name):
        number += 1
        name = f"{like}_{number}"
    put_tensor(model, name, value)
    with model.graph.inserting_before(before):
        node: Node = model.graph.get_attr(name)
    return node


def _free(model: nn.Module, target: str) -> bool:
    """Whether all that stands before the last dot are modules, or nothing yet."""
    owner: object = model
    for part in target.split(".")[:-1]:
        owner = _attribute(owner, part)
        if not isinstance(owner, nn.Module):
            return owner is _NOTHING
    return True


def _exists(model: nn.Module, target: str) -> bool:
    return functools.reduce(_attribute, target.split("."), model) is not _NOTHING


_NOTHING: Any = object()


def _attribute(owner: object, name: str) -> Any:
    """A module, tensor or other attribute; `_NOTHING` where there is none."""
    return getattr(owner, name, _NOTHING)


@torch.no_grad()
def constant_value(model: GraphModule, node: object) -> Tensor | None:
    """The value of a node that does not depend on the model's input; None if it does."""
    sources = _sources(node)
    if sources is None or not isinstance(node, Node):
        return None
    values: dict[Node, Any] = {}
    for used in (n for n in node.graph.nodes if n in sources):
        if used.op == "get_attr":
            values[used] = tensor_at(model, str(used.target)).detach()
            continue
        inputs = {n: values[n] for n in used.all_input_nodes}
        if isinstance(used.target, torch._ops.OpOverload) and used.target._schema.is_mutable:
            inputs = {n: v.clone() if isinstance(v, Tensor) else v for n, v in inputs.items()}
        args, kwargs = torch.fx.map_arg((used.args, dict(used.kwargs)), inputs.__getitem__)
        values[used] = used.target(*args, **kwargs)
    result = values[node]
    return result if isinstance(result, Tensor) else None


def is_constant(node: object) -> bool:
    """Whether a node's value does not depend on the model's input, nor on chance."""
    return _sources(node) is not None


def attributes_behind(node: Node) -> list[Node]:
    """The get_attr nodes that a constant node is computed from, in the graph's order."""
    sources = _sources(node) or set()
    return [n for n in node.graph.nodes if n in sources and n.op == "get_attr"]


def _sources(node: object) -> set[Node] | None:
    """A constant node and all that it is computed from; None if it is not constant."""
    if not isinstance(node, Node):
        return None
    sources, waiting = {node}, [node]
    while waiting:
        current = waiting.pop()
        if current.op == "get_attr":
            continue
        if current.op != "call_function" or not _repeatable(current):
            return None
        fresh = [n for n in current.all_input_nodes if n not in sources]
        sources.update(fresh)
        waiting += fresh
    return sources


def _repeatable(node: Node) -> bool:
    """Whether an operator gives the same for the same inputs."""
    target: Any = node.target
    if isinstance(target, torch._ops.HigherOrderOperator):
        return False
    if not isinstance(target, torch._ops.OpOverload):
        return bool(node.all_input_nodes)
    if target is _aten.dropout.default:
        return not argument(node, 2)
    return torch.Tag.nondeterministic_seeded not in target.tags


def is_float_tensor(node: object) -> bool:
    """Whether a node is known to give one floating-point tensor."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return isinstance(value, Tensor) and value.is_floating_point()
