"""Weights that a graph computes from parameters alone, put there as what they are.

Weight-standardised convolutions (nfnet, BiT) compute their weight at every call. Folded once, it is
a weight like any other.
"""

from __future__ import annotations

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
)


def fold_computed_weights(model: GraphModule) -> list[str]:
    """Replaces every layer's computed weight by its value.

    Args:
        model: ``ExportedProgram.module()``; changed in place, its function is not.

    Returns:
        The names of the layers concerned.
    """
    folded = []
    readers: dict[str, int] = {}
    for node in model.graph.nodes:
        if node.op == "get_attr":
            readers[str(node.target)] = readers.get(str(node.target), 0) + len(node.users)
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
        folded.append(layer.name)
        model.graph.eliminate_dead_code()
        if readers.get(name) == 1:  # nothing else reads the raw weight: its name is free
            put_tensor(model, name, nn.Parameter(value.clone(), requires_grad=False))
            fresh.target = name
    model.graph.eliminate_dead_code()
    model.recompile()
    return folded
