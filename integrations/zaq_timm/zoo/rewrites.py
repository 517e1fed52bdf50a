"""What an exported graph needs before a host can quantize it; its function stays the same.

* Parts under ``torch.autocast`` are put into the graph itself.
* Weights computed from parameters alone become weights. Weight-standardised convolutions (nfnet,
  BiT) compute theirs at every call.
* Padding with minus infinity before max pooling (SAME padding) repeats the border instead: the
  maximum is the same, and a range of activations exists.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.fx import GraphModule

from zaq_pt2e.graph import (
    argument,
    constant_value,
    is_constant,
    layers,
    new_tensor,
    put_tensor,
    root_attribute,
    set_argument,
    tensor_at,
)
from zaq_timm.zoo._compat import inline_wrapped_parts

_aten = torch.ops.aten
_MAX_POOL = (_aten.max_pool1d.default, _aten.max_pool2d.default, _aten.max_pool3d.default)


def rewrite(model: GraphModule) -> list[str]:
    """All of the above, in place.

    Args:
        model: ``ExportedProgram.module()``.

    Returns:
        What a reader should know.
    """
    notes = []
    inline_wrapped_parts(model)
    computed = fold_computed_weights(model)
    if computed:
        notes.append(f"{len(computed)} weights are computed from parameters; their values are used")
    if repeat_borders(model):
        notes.append("padding with minus infinity before max pooling repeats the border instead")
    return notes


def repeat_borders(model: GraphModule) -> int:
    """Makes padding with minus infinity, read by max pooling alone, repeat the border.

    Every window that holds padding holds the border's value beside it, so its maximum stays.

    Returns:
        How many places there were.
    """
    found = 0
    for node in model.graph.nodes:
        if node.op != "call_function" or node.target is not _aten.pad.default:
            continue
        if len(node.args) < 4 or node.args[3] != -math.inf:
            continue
        if all(user.target in _MAX_POOL for user in node.users):
            node.args = (node.args[0], node.args[1], "replicate")
            found += 1
    if found:
        model.recompile()
    return found


def fold_computed_weights(model: GraphModule) -> list[str]:
    """Replaces every layer's computed weight by its value.

    Args:
        model: ``ExportedProgram.module()``; changed in place, its function is not.

    Returns:
        The names of the layers concerned.
    """
    folded: dict[str, tuple[torch.fx.Node, str]] = {}
    for layer in list(layers(model)):
        source = argument(layer.node, 1)
        if not isinstance(source, torch.fx.Node) or source.op == "get_attr":
            continue
        value = constant_value(model, source) if is_constant(source) else None
        if value is None:
            continue
        name = root_attribute(source) or f"{layer.name}.weight"
        fresh = new_tensor(model, name, nn.Parameter(value.clone(), requires_grad=False), source)
        fresh.meta = dict(source.meta)
        set_argument(layer.node, 1, fresh)
        folded[layer.name] = (fresh, name)
    model.graph.eliminate_dead_code()
    for fresh, name in folded.values():
        # Where nothing else reads the raw weight, its name, which is the layer's, is free.
        if not any(n.op == "get_attr" and n.target == name for n in model.graph.nodes):
            put_tensor(model, name, tensor_at(model, str(fresh.target)))
            path, _, attribute = str(fresh.target).rpartition(".")
            delattr(model.get_submodule(path), attribute)
            fresh.target = name
    model.recompile()
    return list(folded)
