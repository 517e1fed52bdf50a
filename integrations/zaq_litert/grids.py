"""Grids that LiteRT's int8 kernels prescribe for what they compute."""

from __future__ import annotations

import copy

import torch
from torch.fx import GraphModule

from zaq_pt2e.device.signed import DEQUANTIZE, QUANTIZE
from zaq_pt2e.graph import argument, set_argument

_aten = torch.ops.aten
PRESCRIBED = {
    _aten.sigmoid.default: (1 / 256, -128),
    _aten.sigmoid_.default: (1 / 256, -128),
    _aten.softmax.int: (1 / 256, -128),
    _aten._softmax.default: (1 / 256, -128),
    _aten.tanh.default: (1 / 128, 0),
    _aten.tanh_.default: (1 / 128, 0),
    _aten.log_softmax.int: (16 / 256, 127),
    _aten._log_softmax.default: (16 / 256, 127),
}
"""Scale and zero point of an int8 output, by operator: a file with others does not load."""


def with_prescribed_grids(graph: GraphModule) -> GraphModule:
    """A copy of an int8 graph in which these operators' outputs are on these grids."""
    model = copy.deepcopy(graph)
    for node in model.graph.nodes:
        if node.target not in PRESCRIBED:
            continue
        for codes in list(node.users):
            if codes.target not in QUANTIZE or argument(codes, 5) is not torch.int8:
                continue
            readers = [user for user in codes.users if user.target in DEQUANTIZE]
            for place, value in enumerate(PRESCRIBED[node.target], start=1):
                for changed in (codes, *readers):
                    set_argument(changed, place, value)
    model.recompile()
    return model
