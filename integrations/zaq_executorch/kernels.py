"""An int8 graph as XNNPACK's kernels want it: grids, and means over whole images."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.fx import GraphModule, Node

from zaq_pt2e.device.grids import MOVES, raise_steps, round_behind
from zaq_pt2e.device.signed import DEQUANTIZE, QUANTIZE
from zaq_pt2e.graph import argument

# ---- Grids ---------------------------------------------------------------------------------------

_LOW, _HIGH = -128, 127


def with_kernel_grids(graph: GraphModule) -> GraphModule:
    """A copy of an int8 graph whose grids are as the kernels want them.

    Steps of outputs are not far below those of the sums, see `raise_steps`. Where values are moved
    from one grid to another, they are moved on the first grid and rounded to the other one after
    it.
    """
    model = copy.deepcopy(graph)
    raise_steps(model)
    for node in list(model.graph.nodes):
        if node.target in MOVES:
            _move_then_round(node)
    model.recompile()
    return model


def _move_then_round(move: Node) -> None:
    source = move.args[0]
    if not isinstance(source, Node) or source.target not in DEQUANTIZE:
        return
    grid = source.args[1:]
    others = [u for u in move.users if u.target in QUANTIZE and u.args[1:3] != grid[:2]]
    if not others or argument(source, 5) is not torch.int8:
        return
    values = round_behind(move, grid)
    for user in others:
        user.replace_input_with(move, values)


# ---- Means over whole images ---------------------------------------------------------------------
#
# XNNPACK's global average pool computes wrong answers for the samples beyond those of the first
# batch that a file was run with, until it is loaded again. A mean that drops its axes is not given
# to XNNPACK: it runs beside the delegate, in float, as the graph itself says.

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
