"""Means over whole images, written so that a file may take larger batches after smaller ones.

XNNPACK's global average pool computes wrong answers for the samples beyond those of the first
batch that a file was run with, until it is loaded again. A mean that drops its axes is not given to
XNNPACK: it runs beside the delegate, in float, as the graph itself says.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.fx import GraphModule, Node

_IMAGE = ([2, 3], [-1, -2])
_ATEN = torch.ops.aten


def means_outside(graph: GraphModule) -> GraphModule:
    """A copy that computes the same, without global average pools."""
    graph_copy = copy.deepcopy(graph)
    for node in list(graph_copy.graph.nodes):
        if not _is_pool(node):
            continue
        with graph_copy.graph.inserting_before(node):
            value = graph_copy.graph.call_function(_ATEN.mean.dim, (node.args[0], [2, 3]))
            for _ in range(2):
                value = graph_copy.graph.call_function(_ATEN.unsqueeze.default, (value, -1))
        node.replace_all_uses_with(value)
        graph_copy.graph.erase_node(node)
    graph_copy.recompile()
    return graph_copy


def _is_pool(node: Node) -> bool:
    if node.target is _ATEN.adaptive_avg_pool2d.default:
        size: Any = node.args[1]
        return size in (1, [1, 1], (1, 1), [1])
    if node.target is not _ATEN.mean.dim or len(node.args) < 3 or not node.args[2]:
        return False
    axes: Any = node.args[1]
    return sorted(axes) in [sorted(two) for two in _IMAGE]
