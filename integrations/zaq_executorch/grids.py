"""Grids as XNNPACK's int8 kernels want them."""

from __future__ import annotations

import copy

import torch
from torch.fx import GraphModule, Node

from zaq_pt2e.device.grids import MOVES, raise_steps, round_behind
from zaq_pt2e.device.signed import DEQUANTIZE, QUANTIZE
from zaq_pt2e.graph import argument


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
