"""BatchNorm folding in an ``fx.GraphModule``: traced ones, and what ``torch.export`` gives."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from zaq_plugin.graph import attribute_at, free_name
from zaq_plugin.layers import LAYERS, out_features
from zaq_plugin.ptq.fold_arithmetic import (
    NormStatistics,
    fold_module,
    folded_parameters,
    is_norm,
    norm_statistics,
    remainder,
)

_NAMES = {
    "conv1d": False,
    "conv2d": False,
    "conv3d": False,
    "linear": False,
    "conv_transpose1d": True,
    "conv_transpose2d": True,
    "conv_transpose3d": True,
}
_NORM_NAMES = ("batch_norm", "_native_batch_norm_legit_no_training")
_FUNCTIONAL_NORM = (
    "input",
    "running_mean",
    "running_var",
    "weight",
    "bias",
    "training",
    "momentum",
    "eps",
)


@dataclass
class _Norm:
    """A BatchNorm node, its statistics, the nodes with its result, its module if it has one."""

    node: fx.Node
    stats: NormStatistics
    results: list[fx.Node]
    tensors: list[fx.Node]
    module: str | None = None


def fold_graph(model: fx.GraphModule) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Fold every BatchNorm of a graph module that can be folded, in place.

    Known are: modules called by the graph, ``torch.nn.functional`` calls on ``get_attr`` tensors,
    and the ``aten`` operators that ``torch.export`` leaves in ``ExportedProgram.module()``.

    Returns:
        The folded ``(layer, norm)`` names, and for each BatchNorm that stays the reason.
    """
    folded: list[tuple[str, str]] = []
    reasons: dict[str, str] = {}
    for node in list(model.graph.nodes):
        norm = _norm_of(model, node)
        if norm is None:
            continue
        name = _name(model, node)
        if isinstance(norm, str):
            reasons[name] = norm
            continue
        source = norm.node.args[0] if norm.node.args else norm.node.kwargs.get("input")
        reason = _fold_into(model, source, norm)
        if reason is None:
            assert isinstance(source, fx.Node)
            folded.append((_name(model, source), name))
            _remove(model, norm, source)
        else:
            reasons[name] = reason
    model.graph.lint()
    model.recompile()
    return folded, reasons


def value_users(node: fx.Node) -> list[fx.Node]:
    """The users of a node that read more of it than its shape, which BatchNorm leaves as it is."""

    def reads_shape(user: fx.Node) -> bool:
        if user.op == "call_function" and user.target is getattr:
            return user.args[1] in ("shape", "ndim", "dtype", "device")
        return user.op == "call_method" and user.target in ("size", "dim")

    return [user for user in node.users if not reads_shape(user)]


def _function(node: Any) -> str:
    """Plain name of the function a node calls, ``conv2d`` for torch's and aten's; else empty."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return ""
    if isinstance(node.target, torch._ops.OpOverload):
        space, _, name = node.target._schema.name.partition("::")
        return name if space == "aten" else ""
    target: Any = node.target
    names = {getattr(F, name): name for name in (*_NAMES, "batch_norm")}
    names.update({getattr(torch, n): n for n in _NAMES if hasattr(torch, n)})
    return names.get(target, "")


def _name(model: fx.GraphModule, node: fx.Node) -> str:
    """A name that a user recognises: the module's, or that of the module that owns the tensors."""
    if node.op == "call_module":
        return str(node.target)
    is_norm_call = _function(node) in _NORM_NAMES
    if is_norm_call and isinstance(node.target, torch._ops.OpOverload):
        tensor = node.args[3]  # aten: input, weight, bias, running_mean, ...
    else:
        tensor = _argument(node, 1, "running_mean" if is_norm_call else "weight")
    if isinstance(tensor, fx.Node) and tensor.op == "get_attr":
        return str(tensor.target).rpartition(".")[0] or str(tensor.target)
    return node.name


def _argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def _attribute(model: nn.Module, node: Any) -> Tensor | None:
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value = attribute_at(model, str(node.target))
    return value if isinstance(value, Tensor) else None


def _norm_of(model: fx.GraphModule, node: fx.Node) -> _Norm | str | None:
    """The BatchNorm at a node; a reason if it is one that cannot be folded; None if it is none."""
    if node.op == "call_module":
        name = str(node.target)
        module = model.get_submodule(name)
        if not is_norm(module):
            return None
        calls = Counter(str(n.target) for n in model.graph.nodes if n.op == "call_module")
        if calls[name] > 1:
            return f"{name!r} is called {calls[name]} times"
        stats = norm_statistics(module)
        return stats if isinstance(stats, str) else _Norm(node, stats, [node], [], name)
    function = _function(node)
    if function not in _NORM_NAMES:
        return None
    aten = isinstance(node.target, torch._ops.OpOverload)
    if aten:
        no_training = function.startswith("_native")
        arguments: tuple[Any, ...] = node.args
        weight, bias, mean, var = arguments[1:5]
        training = False if no_training else arguments[5]
        eps = arguments[6 if no_training else 7]
    else:
        values = {n: _argument(node, i, n) for i, n in enumerate(_FUNCTIONAL_NORM)}
        mean, var, weight, bias = (values[n] for n in _FUNCTIONAL_NORM[1:5])
        training, eps = values["training"] or False, values["eps"]
        eps = 1e-5 if eps is None else eps
    if mean is None or var is None:
        return "it keeps no running statistics (track_running_stats=False)"
    if training is not False:
        return "it normalises by batch statistics; trace or export the model in evaluation mode"
    tensors = [_attribute(model, n) for n in (mean, var, weight, bias)]
    if tensors[0] is None or tensors[1] is None:
        return "its running statistics are computed in the graph"
    if any(n is not None and t is None for n, t in zip((weight, bias), tensors[2:], strict=True)):
        return "its weight or bias is computed in the graph"
    results = [node]
    if function.startswith("_native"):
        results = list(node.users)
        if any(user.args[1] != 0 for user in results):
            return "its saved statistics are used in the graph"
    stats = NormStatistics(tensors[0], tensors[1], tensors[2], tensors[3], float(eps))
    return _Norm(node, stats, results, [n for n in (mean, var, weight, bias) if n is not None])


def _fold_into(model: fx.GraphModule, source: Any, norm: _Norm) -> str | None:
    """Fold into the layer at ``source``; a reason if that is impossible, None when done."""
    if not isinstance(source, fx.Node):
        return "its input is no tensor of the graph"
    if len(value_users(source)) > 1:
        return f"the output of {_name(model, source)!r} is also used elsewhere"
    if source.op == "call_module":
        return _fold_into_module(model, source, norm)
    function = _function(source)
    transposed = _NAMES.get(function)
    if function == "convolution":
        transposed = bool(source.args[6])
    if transposed is None:
        return f"its input is no convolution or linear layer but {source.name!r}"
    weight_node, bias_node = _argument(source, 1, "weight"), _argument(source, 2, "bias")
    weight, bias = _attribute(model, weight_node), _attribute(model, bias_node)
    if weight is None or (bias_node is not None and bias is None):
        return f"the weight or bias of {source.name!r} is computed in the graph"
    value = source.meta.get("val")
    if function == "linear" and (value is None or value.dim() != 2):
        return f"{source.name!r} is linear and its output is not known to have two dimensions"
    uses = _readers(model, weight)
    if uses > 1:
        return f"the weight of {_name(model, source)!r} is used {uses} times"
    position = 8 if function == "convolution" else 6
    groups = _argument(source, position, "groups", 1) if transposed else 1
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    if norm.stats.mean.numel() != channels:
        return f"it has {norm.stats.mean.numel()} channels, {_name(model, source)!r} has {channels}"
    new_weight, new_bias = folded_parameters(
        weight, bias, norm.stats, transposed=transposed, groups=groups
    )
    _set(model, str(weight_node.target), new_weight, weight)
    if bias_node is not None and _readers(model, bias) == 1:
        _set(model, str(bias_node.target), new_bias, weight)
        return None
    target = _free_name(model, str(weight_node.target).rpartition(".")[0])
    _set(model, target, new_bias, weight)
    with model.graph.inserting_before(source):
        new_node = model.graph.get_attr(target)
    if "val" in weight_node.meta:
        mode = getattr(weight_node.meta["val"], "fake_mode", None)
        new_node.meta["val"] = mode.from_tensor(new_bias) if mode else new_bias
    if len(source.args) > 2:
        source.update_arg(2, new_node)
    elif len(source.args) == 2 and "bias" not in source.kwargs:
        source.args = (*source.args, new_node)
    else:
        source.update_kwarg("bias", new_node)
    return None


def _readers(model: fx.GraphModule, tensor: Tensor | None) -> int:
    """How many nodes read a tensor of the model."""
    return sum(_attribute(model, n) is tensor for n in model.graph.nodes for _ in n.users)


def _fold_into_module(model: fx.GraphModule, source: fx.Node, norm: _Norm) -> str | None:
    name = str(source.target)
    layer = model.get_submodule(name)
    if type(layer).forward not in [c.forward for c in LAYERS]:
        return f"its input is no plain convolution or linear layer but {type(layer).__name__}"
    calls = sum(n.op == "call_module" and n.target == name for n in model.graph.nodes)
    owners = sum(
        layer.weight is p for m in model.modules() for p in m._parameters.values() if p is not None
    )
    if calls > 1 or owners > 1:
        return f"{name!r} is called {calls} times, its weight belongs to {owners} modules"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return f"{name!r} has forward hooks, which could tell the difference"
    for owner in (name, norm.module):
        module = None if owner is None else model.get_submodule(owner)
        tensors = (
            () if module is None else (*module._parameters.values(), *module._buffers.values())
        )
        if any(t is not None and _readers(model, t) for t in tensors):
            return f"a tensor of {owner!r} is read elsewhere in the model"
    if isinstance(layer, nn.Linear) and len(_shape(source)) != 2:
        return (
            f"{name!r} is Linear and its output is not known to have two dimensions; "
            "run ShapeProp over the graph first"
        )
    if norm.stats.mean.numel() != out_features(layer):
        return (
            f"it has {norm.stats.mean.numel()} channels, {name!r} has {out_features(layer)} outputs"
        )
    fold_module(layer, norm.stats)
    return None


def _shape(node: fx.Node) -> tuple[int, ...]:
    value = node.meta.get("tensor_meta", node.meta.get("val"))
    return tuple(getattr(value, "shape", ()))


def _set(model: nn.Module, target: str, value: Tensor, like: Tensor) -> None:
    parent_name, _, name = target.rpartition(".")
    parent = model.get_submodule(parent_name)
    if isinstance(like, nn.Parameter):
        setattr(parent, name, nn.Parameter(value, requires_grad=like.requires_grad))
    else:
        if name not in parent._buffers and hasattr(parent, name):
            delattr(parent, name)
        parent.register_buffer(name, value)


def _free_name(model: nn.Module, parent_name: str) -> str:
    name = free_name(model.get_submodule(parent_name), "bias", "folded_", "")
    return f"{parent_name}.{name}" if parent_name else name


def _remove(model: fx.GraphModule, norm: _Norm, source: fx.Node) -> None:
    """Take the BatchNorm out of the graph; a fused activation's module stays in its place."""
    if norm.module is not None:
        rest = remainder(model.get_submodule(norm.module))
        if not isinstance(rest, nn.Identity):
            model.set_submodule(norm.module, rest)
            return
    for result in norm.results:
        result.replace_all_uses_with(source)
    for result in [*norm.results, norm.node]:
        if result in model.graph.nodes:
            model.graph.erase_node(result)
    for tensor in norm.tensors:
        if not tensor.users:
            target = str(tensor.target)
            model.graph.erase_node(tensor)
            if not any(n.op == "get_attr" and n.target == target for n in model.graph.nodes):
                delete_tensor(model, target)
    if norm.module is not None:
        model.delete_submodule(norm.module)


def delete_tensor(model: nn.Module, target: str) -> None:
    """Take a parameter or buffer out of a model, by its dotted name; none is none."""
    parent_name, _, name = target.rpartition(".")
    parent = model.get_submodule(parent_name)
    if hasattr(parent, name):
        delattr(parent, name)
