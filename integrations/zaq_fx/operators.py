"""Operators and layers that the host lowers to something else: they stay float.

Each rule stands for a fact about torch.ao that ``tests/integrations/zaq_fx`` pins.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from zaq_fx.functional import TRANSPOSED
from zaq_fx.kept import Call, KeptCall, KeptFloat
from zaq_fx.layers import WEIGHTED, free_name

_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_ADDITIONS = (torch.add, operator.add)
_PRODUCTS = (torch.mul, operator.mul)
_BOUNDED: dict[Any, Callable[..., Any]] = {
    torch.sigmoid: torch.sigmoid,
    torch.tanh: torch.tanh,
    functional.hardsigmoid: functional.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
_BOUNDED_MODULES = (nn.Sigmoid, nn.Tanh, nn.Hardsigmoid, nn.Softmax)
_OBSERVED = (*WEIGHTED, *_BATCH_NORMS, nn.LayerNorm, nn.ReLU, nn.Hardswish, nn.LeakyReLU, nn.ELU)
_FIXED = (
    "torch.ao puts an input that has no grid yet on the operator's fixed output grid, which cuts it"
)
_RESIZING = ("nearest", "nearest-exact", "bilinear")
_NUMBER_METHODS = {"size", "dim", "numel", "ndimension", "item", "__len__"}
_NUMBER_MODULES = {"_operator", "math", "builtins"}
_POOLS = (
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
)
_JOINING_OR_AVERAGING = {
    torch.cat,
    torch.stack,
    torch.mean,
    torch.avg_pool1d,
    torch.adaptive_avg_pool1d,
    functional.avg_pool2d,
    functional.avg_pool3d,
    functional.adaptive_avg_pool2d,
    functional.adaptive_avg_pool3d,
}
OWN_GRID = (
    "torch.ao keeps one grid for the inputs and outputs of concatenations and averages, of which "
    "the smaller ones use a few integers only"
)
_CHANNELS_LAST = (
    "torch.ao's int8 instance and group norms are wrong for tensors whose channels lie last in "
    "memory, as its convolutions give them, where a batch has more samples than a group has values"
)
_RUNNING = "torch.ao's int8 instance norm takes the input's statistics in place of the running ones"


# ---- layers --------------------------------------------------------------------------------------


def keep_layers_float(model: nn.Module) -> list[str]:
    """Wrap the layers that the host would convert to something else, in place; their names."""
    wrappers: dict[int, nn.Module] = {}
    names = []
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if not name or _inside_kept(model, name):
            continue
        reason = _reason(module)
        if reason is None:
            continue
        wrapper = wrappers.setdefault(id(module), KeptFloat(module, reason, reason != OWN_GRID))
        model.set_submodule(name, wrapper)
        names.append(name)
    return names


def _inside_kept(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name.rpartition(".")[0]), KeptFloat)


def _reason(module: Any) -> str | None:
    """Why a layer stays float; None if the host converts it rightly."""
    kind = type(module)
    if kind in _INSTANCE_NORMS:
        return _RUNNING if module.track_running_stats else _CHANNELS_LAST
    if kind in _BATCH_NORMS and module.running_mean is None:
        return (
            "it normalises by the batch's statistics (track_running_stats=False), which torch.ao "
            "neither folds nor has a kernel for"
        )
    if kind in _POOLS:
        return OWN_GRID
    if kind is nn.PReLU:
        return "torch.ao's int8 PReLU does not compute its slopes"
    return None


def give_affine(model: nn.Module) -> list[str]:
    """Give BatchNorms without weight and bias ones and zeros that are not trained; their names.

    The host folds and converts BatchNorms of all four tensors only.
    """
    names = []
    for name, module in model.named_modules():
        if type(module) not in _BATCH_NORMS:
            continue
        mean: Any = module.running_mean
        if module.weight is not None or mean is None:
            continue
        module.weight = nn.Parameter(torch.ones_like(mean), requires_grad=False)
        module.bias = nn.Parameter(torch.zeros_like(mean), requires_grad=False)
        module.affine = True
        names.append(name)
    return names


# ---- operators -----------------------------------------------------------------------------------


def keep_operators_float(traced: fx.GraphModule) -> int:
    """Turn operators that the host converts wrongly into float layers, in place; how many."""
    count = 0
    modules = dict(traced.named_modules(remove_duplicate=False))
    for node in list(traced.graph.nodes):
        reason = None
        if node.op == "call_function":
            count += _positional(node)
            reason = _operator_reason(node)
        elif node.op == "call_method" and node.target == "mean":
            node.op, node.target, reason = "call_function", torch.mean, OWN_GRID
        if reason is not None:
            _keep(traced, node, reason)
            count += 1
        elif _is_bounded(node, modules) and not _has_a_grid(node, modules):
            if node.op == "call_module":
                name = str(node.target)
                traced.set_submodule(name, KeptFloat(modules[name], _FIXED))
                modules[name] = traced.get_submodule(name)
            else:
                node.op, node.target = "call_function", _BOUNDED[node.target]
                _keep(traced, node, _FIXED)
            count += 1
    return count


def _is_bounded(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return type(modules[str(node.target)]) in _BOUNDED_MODULES
    return node.op in ("call_function", "call_method") and node.target in _BOUNDED


def _has_a_grid(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether the host observes a node's input where it is made."""
    source = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(source, fx.Node):
        return False
    if source.op == "call_module":
        return isinstance(modules.get(str(source.target)), _OBSERVED)
    return source.target in (*_ADDITIONS, *_PRODUCTS)


def _positional(node: fx.Node) -> int:
    """Hand the operands of sums and products over by position, as the host expects them."""
    if node.target not in (torch.add, torch.mul, torch.matmul) or len(node.args) >= 2:
        return 0
    kwargs = dict(node.kwargs)
    names = ("input", "other")[len(node.args) :]
    if not all(name in kwargs for name in names):
        return 0
    node.args = (*node.args, *(kwargs.pop(name) for name in names))
    node.kwargs = kwargs
    return 1


def _operator_reason(node: fx.Node) -> str | None:
    target: Any = node.target
    if target in _ADDITIONS or target in _PRODUCTS:
        return _arithmetic_reason(node)
    if target is functional.interpolate:
        mode = _argument(node, "mode", 3, "nearest")
        if mode not in _RESIZING or _argument(node, "antialias", 6, False):
            return f"torch.ao has no int8 kernel for interpolation by {mode!r}"
    if target in _JOINING_OR_AVERAGING:
        return OWN_GRID
    if target in TRANSPOSED and _argument(node, "bias", 2, None) is None:
        return "torch.ao's int8 transposed convolution as a function wants a bias"
    if target is functional.instance_norm:
        by_input = _argument(node, "use_input_stats", 5, True) is True
        return _CHANNELS_LAST if by_input else _RUNNING
    if target is functional.group_norm:
        return _CHANNELS_LAST
    return None


def _arithmetic_reason(node: fx.Node) -> str | None:
    """Sums and products: a factor ``alpha``, or a number in place of a tensor."""
    alpha = _argument(node, "alpha", 2, 1) if node.target in _ADDITIONS else 1
    if isinstance(alpha, fx.Node) or alpha != 1:
        return "torch.ao's int8 addition drops alpha"
    numbers = [v for v in node.args[:2] if not isinstance(v, fx.Node) or is_number(v)]
    if len(numbers) != 1:
        return None
    kind = "sum" if node.target in _ADDITIONS else "product"
    return (
        f"torch.ao gives the {kind} of a tensor and a number the tensor's own grid, which one of "
        "them then fills badly"
    )


def _argument(node: fx.Node, name: str, position: int, default: Any) -> Any:
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[position] if len(node.args) > position else default


def is_number(node: fx.Node) -> bool:
    """Whether a graph node is a Python number or shape: sizes, and arithmetic on them."""
    target: Any = node.target
    if node.op == "call_method":
        return target in _NUMBER_METHODS
    if node.op != "call_function":
        return False
    if target is getattr:
        return node.args[1] in ("shape", "ndim")
    if getattr(target, "__module__", None) not in _NUMBER_MODULES:
        return False
    return bool(node.all_input_nodes) and all(is_number(n) for n in node.all_input_nodes)


def _keep(traced: fx.GraphModule, node: fx.Node, reason: str) -> None:
    """Put a float layer in the place of a function's call."""
    function: Any = node.target
    wrapper = KeptCall(Call(function, function.__name__), reason, reason != OWN_GRID)
    wrapper.train(traced.training)
    name = free_name(traced, node.name)
    traced.add_submodule(name, wrapper)
    with traced.graph.inserting_before(node):
        call = traced.graph.call_module(name, node.args, node.kwargs)
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    traced.graph.erase_node(node)
