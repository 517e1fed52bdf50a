"""Grids in an int8 graph: what moves values on one, and how one is put or changed."""

from __future__ import annotations

import operator

import torch
from torch.fx import GraphModule, Node

from zaq_pt2e.device.signed import DEQUANTIZE, QUANTIZE, int8_layers
from zaq_pt2e.graph import argument, constant_value, set_argument
from zaq_pt2e.outputs import last_of

_aten = torch.ops.aten
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
"""What reads a value, and what gives the same values in another order or shape, or some of them."""

FINEST = 256
"""A layer's output has a step of at least this part of the step of its sums, or XNNPACK does not
load it."""
_LOW, _HIGH = -128, 127


def round_behind(node: Node, grid: tuple[object, ...]) -> Node:
    """The node's values on a grid, quantized and dequantized; nobody reads them yet.

    Args:
        node: Of an activation.
        grid: Arguments of quantize_per_tensor behind the first.
    """
    graph = node.graph
    with graph.inserting_after(node):
        codes = graph.call_function(QUANTIZE[0], (node, *grid))  # type: ignore[arg-type]
    with graph.inserting_after(codes):
        values = graph.call_function(DEQUANTIZE[0], (codes, *grid))  # type: ignore[arg-type]
    values.meta["val"] = node.meta.get("val")
    return values


def put_on(codes: Node, scale: float, zero: int) -> None:
    """Give a quantize node, and all that dequantize it, another step and zero point."""
    for node in (codes, *[user for user in codes.users if user.target in DEQUANTIZE]):
        set_argument(node, 1, scale)
        set_argument(node, 2, zero)


def raise_steps(model: GraphModule) -> None:
    """Raise, in place, steps of layers' outputs that are far below the step of their sums.

    Such is an output without a range, as that of weights of zero. What lies between sums never
    occurs, so nothing is lost.
    """
    for layer in list(int8_layers(model)):
        x, weight = argument(layer.node, 0), argument(layer.node, 1)
        scales = weight.args[1]
        if isinstance(scales, Node):
            value = constant_value(model, scales)
            assert value is not None
            scales = float(value.max())
        least = float(argument(x, 1)) * float(scales) / FINEST * (1 + 1e-6)
        for codes in _grids_of(last_of(layer.node)):
            if float(argument(codes, 1)) >= least:
                continue
            bottom = (_LOW - int(argument(codes, 2))) * float(argument(codes, 1))
            zero = min(max(round(_LOW - bottom / least), _LOW), _HIGH)
            put_on(codes, least, zero)


def _grids_of(node: Node) -> list[Node]:
    return [user for user in node.users if user.target in QUANTIZE]
