"""Who reads a watched tensor, and a narrow grid of its own for those who multiply by it.

The host gives a tensor one grid, whoever reads it. A residual trunk is read by a convolution, whose
multiplier may be narrow, and by an addition, for which rounding the trunk is a loss and no gain. So
the trunk keeps its wide grid, and a second observer stands in front of the convolution: conversion
makes of it what it makes of every observer, a quantization, and the convolution's int8 kernel reads
its integers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from zaq_fx._compat import is_watcher
from zaq_fx.layers import has_root

_PRODUCTS = {
    torch.matmul,
    torch.bmm,
    torch.conv1d,
    torch.conv2d,
    torch.conv3d,
    nn.functional.linear,
    nn.functional.scaled_dot_product_attention,
}
_SHAPES = {"size", "dim", "numel", getattr}


@dataclass
class Readers:
    """What reads a tensor and those that share its watcher.

    Attributes:
        products: (watcher's node, convolution, linear layer or matrix product that reads it).
        distant: Whether a product reads it through operators that nothing watches.
        others: Nodes that read it and multiply nothing: additions, outputs, ...
    """

    products: list[tuple[fx.Node, fx.Node]] = field(default_factory=list)
    distant: bool = False
    others: list[fx.Node] = field(default_factory=list)

    @property
    def multiplied(self) -> bool:
        """Whether a convolution, linear layer or matrix product reads the tensor."""
        return bool(self.products) or self.distant


def readers(nodes: Sequence[fx.Node], modules: dict[str, nn.Module]) -> Readers:
    """The readers of the tensors that one watcher watches.

    Operators that keep their input's range (pooling, reshaping, ReLU) are followed by a watcher
    that shares the range: their readers count, and they themselves do not.

    Args:
        nodes: The calls of one watcher.
        modules: The prepared model's, by name.
    """
    groups = Readers()
    shared = modules[str(nodes[0].target)]
    for node in nodes:
        for user in node.users:
            if _is_product(user, modules):
                groups.products.append((node, user))
            elif _reaches_product(user, modules):
                groups.distant = True
            elif user.target not in _SHAPES and not any(
                modules.get(str(n.target)) is shared for n in user.users if n.op == "call_module"
            ):
                groups.others.append(user)
    return groups


def _is_product(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return has_root(modules[str(node.target)])
    return node.op == "call_function" and node.target in _PRODUCTS


def _reaches_product(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a product reads what comes of a node, unobserved between."""
    seen: set[fx.Node] = set()
    stack = [node]
    while stack:
        reader = stack.pop()
        if reader in seen:
            continue
        seen.add(reader)
        if _is_product(reader, modules):
            return True
        if reader.op == "call_module" and is_watcher(modules[str(reader.target)]):
            continue
        stack.extend(reader.users)
    return False


def give_own_grid(
    prepared: fx.GraphModule, products: Sequence[tuple[fx.Node, fx.Node]], watcher: nn.Module
) -> list[str]:
    """Put a watcher between each watched tensor and the products that read it, in place.

    Args:
        prepared: Freshly prepared, nothing was observed yet.
        products: See `Readers`.
        watcher: What to put there; each tensor gets a copy.

    Returns:
        Names of the new watchers.
    """
    watchers: dict[fx.Node, fx.Node] = {}
    for source, product in products:
        if source not in watchers:
            name = f"{source.target}_multiplied"
            prepared.add_module(name, copy.deepcopy(watcher))
            with prepared.graph.inserting_after(source):
                watchers[source] = prepared.graph.call_module(name, (source,))
        product.replace_input_with(source, watchers[source])
    prepared.recompile()
    return [str(node.target) for node in watchers.values()]
