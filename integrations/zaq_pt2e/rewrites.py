"""What an exported graph needs before it can be quantized; its function stays the same.

* Parts under ``torch.no_grad`` or a switched-off ``torch.autocast`` are put into the graph itself.
* Casts that change nothing are taken out.
* What is computed from parameters alone becomes a parameter: the weights of weight-standardised
  convolutions (nfnet, BiT), of ``weight_norm``, ``spectral_norm``, pruning and parametrizations.
  A weight that is a buffer (a cosine transform, a blur) becomes a parameter that does not train.
* Padding with minus infinity before max pooling (SAME padding) repeats the border instead: the
  maximum is the same, and a range of activations exists.
* BatchNorm without running statistics is written in elementary operators. Its statistics are the
  batch's in evaluation, too, so that no switch between training and evaluation may touch it.
* BatchNorm in the form of PyTorch's inference operators takes the form of torch.export.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from zaq_plugin.ptq.fold_graph import delete_tensor
from zaq_pt2e.casts import drop_casts
from zaq_pt2e.graph import (
    WEIGHTED,
    add_note,
    argument,
    attributes_behind,
    constant_value,
    is_constant,
    layer_of,
    new_tensor,
    put_tensor,
    set_argument,
    tensor_at,
)
from zaq_pt2e.parts import inline_parts

_aten = torch.ops.aten
BATCH_NORM = _aten.batch_norm.default
_INFERENCE_NORM = _aten._native_batch_norm_legit_no_training.default
_MAX_POOL = (_aten.max_pool1d.default, _aten.max_pool2d.default, _aten.max_pool3d.default)
_VIEWS = (
    _aten.t.default,
    _aten.transpose.int,
    _aten.permute.default,
    _aten.numpy_T.default,
    _aten.view.default,
    _aten.reshape.default,
    _aten.alias.default,
    _aten.detach.default,
)


def rewrite(model: GraphModule) -> list[str]:
    """All of the above, in place; once more changes nothing.

    Args:
        model: ``ExportedProgram.module()``. The model that was exported is left alone.

    Returns:
        What a reader should know.

    Raises:
        ValueError: layers run under an active ``torch.autocast``.
    """
    notes = []
    inline_parts(model)
    drop_casts(model)
    _take_export_form(model)
    computed = bake_constants(model)
    adopt_buffers(model)
    if computed:
        notes.append(f"{len(computed)} weights are computed from parameters; their values are used")
    if repeat_borders(model):
        notes.append("padding with minus infinity before max pooling repeats the border instead")
    count = write_out_batch_statistics(model)
    if count:
        notes.append(f"{count} BatchNorms without running statistics stay float")
    return notes


def repeat_borders(model: GraphModule) -> int:
    """Makes padding with minus infinity, read by max pooling alone, repeat the border.

    Every window that holds padding holds the border's value beside it, so its maximum stays.

    Returns:
        How many places there were.
    """
    count = 0
    for node in model.graph.nodes:
        if node.op != "call_function" or node.target is not _aten.pad.default:
            continue
        if len(node.args) < 4 or node.args[3] != -math.inf:
            continue
        if all(user.target in _MAX_POOL for user in node.users):
            node.args = (node.args[0], node.args[1], "replicate")
            count += 1
    if count:
        model.recompile()
    return count


# ---- constants -----------------------------------------------------------------------------------


def bake_constants(model: GraphModule) -> list[str]:
    """Replaces computed parameters of layers and BatchNorms by their values.

    A weight that is another tensor in another layout (tied to an embedding, say) stays tied.

    Args:
        model: ``ExportedProgram.module()``; changed in place, its function is not.

    Returns:
        The names of the layers whose weights were computed.
    """
    constants: dict[Node, Node] = {}
    values: dict[str, list[tuple[Tensor, Node]]] = {}
    raw: set[str] = set()
    layers: dict[str, None] = {}
    for node in list(model.graph.nodes):
        for position in _parameters_of(node):
            source = argument(node, position)
            if not isinstance(source, Node) or source.op == "get_attr" or not is_constant(source):
                continue
            if _tied(model, source):
                continue
            if source not in constants:
                value = constant_value(model, source)
                if value is None:
                    continue
                raw.update(str(n.target) for n in attributes_behind(source))
                constants[source] = _baked(model, source, value, values)
            set_argument(node, position, constants[source])
            if position == 1 and node.target in WEIGHTED:
                layers[layer_of(_plain_name(model, source, constants[source]))] = None
    if not constants:
        return []
    names = {constants[s]: _plain_name(model, s, constants[s]) for s in constants}
    model.graph.eliminate_dead_code()
    read = {str(n.target) for n in model.graph.nodes if n.op == "get_attr"}
    for target in raw - read:
        delete_tensor(model, target)
    for fresh, name in names.items():
        _rename(model, fresh, name)
    model.recompile()
    return list(layers)


def adopt_buffers(model: GraphModule) -> None:
    """Makes weights of layers that are buffers parameters, which need no gradients."""
    for node in model.graph.nodes:
        source = argument(node, 1) if node.target in WEIGHTED else None
        if isinstance(source, Node) and source.op == "get_attr":
            value = tensor_at(model, str(source.target))
            if not isinstance(value, nn.Parameter) and value.is_floating_point():
                frozen = nn.Parameter(value.detach(), requires_grad=False)
                put_tensor(model, str(source.target), frozen)


def _parameters_of(node: Node) -> tuple[int, ...]:
    if node.op != "call_function":
        return ()
    if node.target in WEIGHTED:
        return (1, 2)
    # One that standardises a weight is itself part of a constant.
    return (1, 2, 3, 4) if node.target is BATCH_NORM and not is_constant(node) else ()


def _tied(model: GraphModule, source: Node) -> bool:
    """Whether a node is a view of a tensor that something else reads, too."""
    node: object = source
    while isinstance(node, Node) and node.target in _VIEWS:
        node = node.args[0]
    if not isinstance(node, Node) or node.op != "get_attr" or source.op == "get_attr":
        return False
    same = [n for n in model.graph.nodes if n.op == "get_attr" and n.target == node.target]
    return sum(len(n.users) for n in same) > 1


def _baked(
    model: GraphModule, source: Node, value: Tensor, values: dict[str, list[tuple[Tensor, Node]]]
) -> Node:
    """A get_attr node with the value; one that is computed at every call is one tensor."""
    behind = attributes_behind(source)
    key = " ".join(sorted({str(n.target) for n in behind}))
    for tensor, node in values.setdefault(key, []):
        if tensor.shape == value.shape and torch.equal(tensor, value):
            return node
    trains = any(tensor_at(model, str(n.target)).requires_grad for n in behind)
    parameter = nn.Parameter(
        value.clone(memory_format=torch.contiguous_format), requires_grad=trains
    )
    first = next(n for n in model.graph.nodes if n.op != "placeholder")
    fresh = new_tensor(model, _raw_name(model, source, value), parameter, first)
    fresh.meta = dict(source.meta)
    values[key].append((value, fresh))
    return fresh


def _raw_name(model: GraphModule, source: Node, value: Tensor) -> str:
    """Name of the tensor behind a computed one that is most like it."""
    behind = [str(n.target) for n in attributes_behind(source)]
    alike = [n for n in behind if tensor_at(model, n).shape == value.shape]
    return (alike or behind or [source.name])[0]


def _plain_name(model: GraphModule, source: Node, fresh: Node) -> str:
    """The name that the tensor would have without parametrization."""
    name = _raw_name(model, source, tensor_at(model, str(fresh.target)))
    if ".parametrizations." in name:
        owner, _, rest = name.partition(".parametrizations.")
        return f"{owner}.{rest.split('.')[0]}"
    for suffix in ("_orig", "_v", "_g"):
        for plain in ("weight", "bias"):
            if name.endswith(f"{plain}{suffix}"):
                return name.removesuffix(suffix)
    return name


def _rename(model: GraphModule, node: Node, name: str) -> None:
    """Give a tensor another name, if that is free."""
    if node.target == name or any(
        n.op == "get_attr" and n.target == name for n in model.graph.nodes
    ):
        return
    old = str(node.target)
    value = tensor_at(model, old)
    path, _, attribute = old.rpartition(".")
    delattr(model.get_submodule(path), attribute)
    put_tensor(model, name, value)
    node.target = name


# ---- BatchNorm -----------------------------------------------------------------------------------


def write_out_batch_statistics(model: GraphModule) -> int:
    """Writes BatchNorm without running statistics in elementary operators.

    The layer in front of it gets a remark for the audit.

    Returns:
        How many there were.
    """
    count = 0
    for node in list(model.graph.nodes):
        if node.op != "call_function" or node.target is not BATCH_NORM:
            continue
        source = node.args[0]
        value = source.meta.get("val") if isinstance(source, Node) else None
        if argument(node, 3) is not None or not isinstance(value, Tensor):
            continue
        if isinstance(source, Node) and source.target in WEIGHTED:
            remark = "its BatchNorm stays float: it keeps no running statistics"
            add_note(source, norm=remark)
        _write_out(model, node, value.dim())
        count += 1
    if count:
        model.graph.eliminate_dead_code()
        model.recompile()
    return count


def _write_out(model: GraphModule, node: Node, dims: int) -> None:
    graph, (x, gamma, beta), eps = model.graph, node.args[:3], node.args[7]
    shape = [1, -1, *[1] * (dims - 2)]

    def call(target: Any, *args: Any, **kwargs: Any) -> Node:
        step: Node = graph.call_function(target, args, kwargs)
        step.meta = {k: v for k, v in node.meta.items() if k != "val"}
        return step

    with graph.inserting_before(node):
        axes = [0, *range(2, dims)]
        both = call(_aten.var_mean.correction, x, axes, correction=0, keepdim=True)
        var, mean = (call(operator.getitem, both, i) for i in range(2))
        scale = call(_aten.rsqrt.default, call(_aten.add.Scalar, var, eps))
        result = call(_aten.mul.Tensor, call(_aten.sub.Tensor, x, mean), scale)
        if gamma is not None:
            result = call(_aten.mul.Tensor, result, call(_aten.reshape.default, gamma, shape))
        if beta is not None:
            # No addition of tensors: the inputs of these are quantized.
            shift = call(_aten.neg.default, call(_aten.reshape.default, beta, shape))
            result = call(_aten.sub.Tensor, result, shift)
    result.meta = dict(node.meta)
    node.replace_all_uses_with(result)
    graph.erase_node(node)


def _take_export_form(model: GraphModule) -> None:
    """Write BatchNorm of graphs that were decomposed as one operator with one result."""
    changed = False
    for node in list(model.graph.nodes):
        if node.op != "call_function" or node.target is not _INFERENCE_NORM:
            continue
        if any(u.target is not operator.getitem or u.args[1] != 0 for u in node.users):
            continue
        x, gamma, beta, mean, var, momentum, eps = node.args
        with model.graph.inserting_before(node):
            args = (x, gamma, beta, mean, var, False, momentum, eps, False)
            whole = model.graph.call_function(BATCH_NORM, args)
        for user in list(node.users):
            whole.meta = dict(user.meta)
            user.replace_all_uses_with(whole)
            model.graph.erase_node(user)
        model.graph.erase_node(node)
        changed = True
    if changed:
        model.recompile()
