"""Grids as LiteRT's int8 kernels want them."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch.fx import GraphModule, Node

from zaq_pt2e.device.grids import MOVES, put_on, raise_steps, round_behind
from zaq_pt2e.device.signed import QUANTIZE
from zaq_pt2e.graph import argument

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

_SHAPES = {_aten.flatten.using_ints, _aten.reshape.default, _aten.view.default}
_PRODUCTS = {_aten.matmul.default, _aten.bmm.default}


def with_kernel_grids(graph: GraphModule) -> GraphModule:
    """A copy of an int8 graph whose grids are as the kernels want them.

    Steps of outputs are not far below those of the sums, see `raise_steps`. Outputs of `PRESCRIBED`
    operators are on their grids. Products of two activations are quantized
    before their shape changes, and not behind it (the same values): the converter merges the two
    otherwise, and refuses its own result.
    """
    model = copy.deepcopy(graph)
    raise_steps(model)
    for node in list(model.graph.nodes):
        if node.target in PRESCRIBED:
            for codes in _grids_behind(node):
                put_on(codes, *PRESCRIBED[node.target])
        elif node.target in _PRODUCTS:
            _quantize_before_shape(node)
    model.recompile()
    return model


def _grids_behind(node: Node) -> Iterator[Node]:
    for user in list(node.users):
        if user.target in MOVES:
            yield from _grids_behind(user)
        elif user.target in QUANTIZE and argument(user, 5) is torch.int8:
            yield user


def _quantize_before_shape(product: Node) -> None:
    """``quantize(view(x))`` as ``view(dequantize(quantize(x)))``, quantized as before behind it."""
    shape = next(iter(product.users))
    if len(product.users) != 1 or shape.target not in _SHAPES or not shape.users:
        return
    targets = {user.target for user in shape.users}
    grids = {user.args[1:] for user in shape.users}
    if len(grids) != 1 or not targets <= set(QUANTIZE):
        return
    shape.replace_input_with(product, round_behind(product, grids.pop()))
