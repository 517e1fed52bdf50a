"""Functional convolutions and linear layers on parameters, turned into modules.

``F.conv2d`` and ``F.linear`` on a parameter bypass the host's weight handling.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from zaq_fx.layers import Tracer, free_name, trace
from zaq_plugin.graph import attribute_at

_CONVOLUTIONS: dict[Any, type[nn.Module]] = {
    functional.conv1d: nn.Conv1d,
    functional.conv2d: nn.Conv2d,
    functional.conv3d: nn.Conv3d,
    torch.conv1d: nn.Conv1d,
    torch.conv2d: nn.Conv2d,
    torch.conv3d: nn.Conv3d,
}
TRANSPOSED: dict[Any, type[nn.Module]] = {
    functional.conv_transpose1d: nn.ConvTranspose1d,
    functional.conv_transpose2d: nn.ConvTranspose2d,
    functional.conv_transpose3d: nn.ConvTranspose3d,
    torch.conv_transpose1d: nn.ConvTranspose1d,
    torch.conv_transpose2d: nn.ConvTranspose2d,
    torch.conv_transpose3d: nn.ConvTranspose3d,
}
FUNCTIONAL = {*_CONVOLUTIONS, *TRANSPOSED, functional.linear}
_CONV_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED_ARGUMENTS = (
    "input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation",
)  # fmt: skip
_LINEAR_ARGUMENTS = ("input", "weight", "bias")


def has_functional_candidates(model: nn.Module) -> bool:
    """Whether some module that the tracer enters owns a weight of two or more dimensions.

    The tracer enters everything outside torch.nn, and containers; a weight owned there can only be
    used by functional calls.
    """
    tracer = Tracer()
    for name, module in model.named_modules():
        owns = any(p is not None and p.dim() >= 2 for p in module._parameters.values())
        if owns and (not name or not tracer.is_leaf_module(module, name)):
            return True
    return False


def functional_to_modules(model: nn.Module) -> fx.GraphModule:
    """Trace a model and turn functional convolutions and linear layers into modules.

    A call is turned if its weight (and bias) is a parameter, or is computed from parameters alone
    and the model is in eval mode (weight standardisation): then the value is computed once.

    Returns:
        A GraphModule that shares the model's parameters. If nothing could be turned, still the
        traced model.

    Raises:
        ValueError: the model cannot be traced.
    """
    traced = trace(model)
    for node in list(traced.graph.nodes):
        if node.op == "call_function" and node.target in FUNCTIONAL:
            _turn(traced, node)
    traced.graph.eliminate_dead_code()
    traced.graph.lint()
    traced.recompile()
    traced.train(model.training)
    return traced


def _turn(traced: fx.GraphModule, node: fx.Node) -> None:
    names: tuple[str, ...] = _CONV_ARGUMENTS
    if node.target is functional.linear:
        names = _LINEAR_ARGUMENTS
    elif node.target in TRANSPOSED:
        names = _TRANSPOSED_ARGUMENTS
    arguments = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    weight = constant(traced, arguments.get("weight"))
    bias = constant(traced, arguments.get("bias"))
    if weight is None or (arguments.get("bias") is not None and bias is None):
        return
    options = {k: v for k, v in arguments.items() if k not in _LINEAR_ARGUMENTS}
    if any(isinstance(v, fx.Node) for v in options.values()):
        return
    layer = _module(node.target, weight, bias, options)
    layer.train(traced.training)
    name = _place(traced, _first_attribute(arguments["weight"]), node, layer)
    with traced.graph.inserting_before(node):
        call = traced.graph.call_module(name, (arguments["input"],))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    traced.graph.erase_node(node)


def constant(traced: fx.GraphModule, node: Any) -> Tensor | None:
    """The value of a graph node that is a parameter, or (eval mode) computed from parameters."""
    if not isinstance(node, fx.Node):
        return None
    if node.op == "get_attr":
        value = attribute_at(traced, str(node.target))
        return value if isinstance(value, Tensor) else None
    if traced.training or node.op not in ("call_function", "call_method"):
        return None
    env: dict[fx.Node, Any] = {}

    def value_of(n: fx.Node) -> Any:
        if n not in env:
            if n.op == "get_attr":
                env[n] = attribute_at(traced, str(n.target))
            elif n.op in ("call_function", "call_method"):
                args = fx.map_arg(n.args, value_of)
                kwargs = fx.map_arg(n.kwargs, value_of)
                call: Callable[..., Any] = (
                    n.target if n.op == "call_function" else getattr(args[0], str(n.target))  # type: ignore[assignment]
                )
                env[n] = call(*(args if n.op == "call_function" else args[1:]), **kwargs)
            else:
                raise _DependsOnInputError
        return env[n]

    try:
        with torch.no_grad():
            value = value_of(node)
    except _DependsOnInputError:
        return None
    return value.detach().clone() if isinstance(value, Tensor) else None


class _DependsOnInputError(Exception):
    """A weight is computed from the model's input."""


def _module(target: Any, weight: Tensor, bias: Tensor | None, options: dict[str, Any]) -> nn.Module:
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        if target is functional.linear:
            layer: nn.Module = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
        else:
            groups = options.get("groups", 1)
            channels = weight.shape[1] * groups, weight.shape[0]
            kind = {**_CONVOLUTIONS, **TRANSPOSED}[target]
            layer = kind(
                *(reversed(channels) if target in TRANSPOSED else channels),
                tuple(weight.shape[2:]),
                bias=bias is not None,
                **options,
            )
    layer._parameters["weight"] = _as_parameter(weight)
    if bias is not None:
        layer._parameters["bias"] = _as_parameter(bias)
    return layer


def _as_parameter(value: Tensor) -> nn.Parameter:
    return value if isinstance(value, nn.Parameter) else nn.Parameter(value)


def _first_attribute(weight: Any) -> str:
    """The name of the first parameter that a weight is computed from."""
    stack = [weight]
    while stack:
        node = stack.pop()
        if isinstance(node, fx.Node):
            if node.op == "get_attr":
                return str(node.target)
            stack.extend(reversed(node.all_input_nodes))
    return ""


def _place(traced: fx.GraphModule, weight: str, node: fx.Node, layer: nn.Module) -> str:
    """Name the new module like its weight's owner if nothing else does, or beside it."""
    owner, _, leaf = weight.rpartition(".")
    if owner and leaf == "weight":
        holder = traced.get_submodule(owner)
        rest = set(holder._parameters) - {"weight", "bias"}
        readers = [n for n in traced.graph.nodes if n.op == "get_attr" and n.target == weight]
        shared = len(readers) > 1 or sum(len(n.users) for n in readers) > 1
        if not (rest or holder._modules or holder._buffers or shared or _called(traced, owner)):
            # get_attr nodes of the old parameters die with the functional call.
            traced.set_submodule(owner, layer)
            return owner
    stem = f"{owner}_{node.name}" if owner else node.name
    name = free_name(traced, stem)
    traced.add_submodule(name, layer)
    return name


def _called(traced: fx.GraphModule, owner: str) -> bool:
    """Whether a call_module node already uses this name."""
    return any(n.op == "call_module" and n.target == owner for n in traced.graph.nodes)


# ---- Parameters of layers that functions read, too -----------------------------------------------
#
# The host takes a layer's float parameters away when it folds or converts it; what reads them in
# the graph would fail there, or read a folded weight.

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
