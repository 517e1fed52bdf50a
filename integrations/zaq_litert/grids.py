"""Grids as LiteRT's int8 kernels want them."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator

import torch
from torch.fx import GraphModule, Node

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


MOVES = {
    operator.getitem,
    _aten.alias.default,
    _aten.chunk.default,
    _aten.clone.default,
    _aten.contiguous.default,
    _aten.dropout.default,
    _aten.expand.default,
    _aten.flatten.using_ints,
    _aten.permute.default,
    _aten.reshape.default,
    _aten.select.int,
    _aten.slice.Tensor,
    _aten.split.Tensor,
    _aten.split_with_sizes.default,
    _aten.squeeze.dim,
    _aten.transpose.int,
    _aten.unflatten.int,
    _aten.unsqueeze.default,
    _aten.view.default,
}
"""What leaves values as they are: what reads it and what gives it are on one grid in a file."""
_SHAPES = {_aten.flatten.using_ints, _aten.reshape.default, _aten.view.default}
_PRODUCTS = {_aten.matmul.default, _aten.bmm.default}


def with_kernel_grids(graph: GraphModule) -> GraphModule:
    """A copy of an int8 graph whose grids are as the kernels want them.

    Outputs of `PRESCRIBED` operators are on their grids. Products of two activations are quantized
    before their shape changes, and not behind it (the same values): the converter merges the two
    otherwise, and refuses its own result.
    """
    model = copy.deepcopy(graph)
    for node in list(model.graph.nodes):
        if node.target in PRESCRIBED:
            for codes in _grids_behind(node):
                _put_on(codes, PRESCRIBED[node.target])
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


def _put_on(codes: Node, grid: tuple[float, int]) -> None:
    readers = [user for user in codes.users if user.target in DEQUANTIZE]
    for place, value in enumerate(grid, start=1):
        for changed in (codes, *readers):
            set_argument(changed, place, value)


def _quantize_before_shape(product: Node) -> None:
    """``quantize(view(x))`` as ``view(dequantize(quantize(x)))``, quantized as before behind it."""
    shape = next(iter(product.users))
    if len(product.users) != 1 or shape.target not in _SHAPES or not shape.users:
        return
    codes = next(iter(shape.users))
    if codes.target not in QUANTIZE or not isinstance(codes.args[0], Node):
        return
    grid = (codes.target, codes.args[1:])
    if any((user.target, user.args[1:]) != grid for user in shape.users):
        return
    values = next((user for user in codes.users if user.target in DEQUANTIZE), None)
    if values is None:
        return
    graph = product.graph
    with graph.inserting_before(shape):
        inner = graph.call_function(QUANTIZE[0], (product, *codes.args[1:]))
        outer = graph.call_function(DEQUANTIZE[0], (inner, *values.args[1:]))
    outer.meta["val"] = product.meta.get("val")
    shape.replace_input_with(product, outer)
