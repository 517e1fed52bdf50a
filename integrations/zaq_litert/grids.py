"""Grids as LiteRT's int8 kernels want them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from zaq_pt2e.device.grids import MOVES, put_on, raise_steps, round_behind
from zaq_pt2e.device.signed import DEQUANTIZE, QUANTIZE
from zaq_pt2e.graph import argument, new_tensor, set_argument

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
UNIT_LENGTH = (1 / 128, 0)
"""Those of vectors that are divided by their length, which is one operator in a file."""

_EXPANDS = {_aten.expand.default, _aten.expand_as.default}
_BETWEEN = {_aten.clamp_min.default, _aten.clamp.default} | _EXPANDS
_SHAPES = {_aten.flatten.using_ints, _aten.reshape.default, _aten.view.default}
_PRODUCTS = {_aten.matmul.default, _aten.bmm.default}
_POOLS = {_aten.avg_pool1d.default, _aten.avg_pool2d.default}
_POOLS |= {_aten.max_pool1d.default, _aten.max_pool2d.default}


def with_kernel_grids(graph: GraphModule) -> GraphModule:
    """A copy of an int8 graph whose grids are as the kernels want them.

    Steps of outputs are not far below those of the sums, see `raise_steps`. Outputs of `PRESCRIBED`
    operators and of ``normalize`` are on their grids. Products of two activations are quantized
    before their shape changes, and not behind it (the same values): the converter merges the two
    otherwise, and refuses its own result. Padding is with zeros, which are on every grid. Pooling
    is on the grid of what is pooled, and put on its own grid behind. What was on a grid before its
    shape or order changed, or parts were taken, stays on it.
    """
    model = copy.deepcopy(graph)
    raise_steps(model)
    for node in list(model.graph.nodes):
        prescribed = PRESCRIBED.get(node.target)
        if _divides_by_length(node):
            prescribed = UNIT_LENGTH
            _divide_without_expanding(node)
        if prescribed is not None:
            for codes in _grids_behind(node):
                put_on(codes, *prescribed)
        elif node.target in _PRODUCTS:
            _quantize_before_shape(node)
        elif node.target is _aten.pad.default:
            _pad_with_zeros(model, node)
        elif node.target in _POOLS:
            _pool_on_its_inputs_grid(model, node)
    for node in model.graph.nodes:
        _stay_on_a_grid(node)
    model.recompile()
    return model


def _divides_by_length(node: Node) -> bool:
    """Whether this is ``torch.nn.functional.normalize`` of the last dimension, or of channels.

    Channels of images are last in a file.
    """
    if node.target is not _aten.div.Tensor:
        return False
    vectors: Any = node.args[0]
    length: Any = node.args[1]
    while isinstance(length, Node) and length.target in _BETWEEN:
        length = length.args[0]
    if not isinstance(length, Node) or length.target is not _aten.linalg_vector_norm.default:
        return False
    value, order, axes = node.meta.get("val"), argument(length, 1), argument(length, 2)
    last: list[list[int]] = [[-1]]
    if isinstance(value, Tensor):
        last += [[value.dim() - 1]] + ([[1], [-3]] if value.dim() == 4 else [])
    return order == 2 and axes in last and _source(argument(length, 0)) is _source(vectors)


def _divide_without_expanding(node: Node) -> None:
    """The quotient is the same; the converter expands to torch's order of axes, not the file's."""
    length: Any = node.args[1]
    if length.target in _EXPANDS:
        node.replace_input_with(length, length.args[0])


def _source(node: Node) -> Any:
    """The codes behind: each reader may have a dequantize node of its own."""
    return node.args[0] if node.target in DEQUANTIZE else node


def _grids_behind(node: Node) -> Iterator[Node]:
    for user in list(node.users):
        if user.target in MOVES:
            yield from _grids_behind(user)
        elif user.target in QUANTIZE and argument(user, 5) is torch.int8:
            yield user


def _stay_on_a_grid(codes: Node) -> None:
    """``quantize(move(dequantize(c)))`` on the grid of c, where no concatenation reads it.

    The values are on that grid; another one cannot tell more of them. The converter would move the
    other one in front of a change of shape, and refuse its own result.
    """
    if codes.target not in QUANTIZE or argument(codes, 5) is not torch.int8:
        return
    source: Any = codes.args[0]
    while isinstance(source, Node) and source.target in MOVES:
        source = source.args[0]
    if not isinstance(source, Node) or source.target not in DEQUANTIZE:
        return
    readers = {user.target for values in codes.users for user in values.users}
    if source.args[1:] != codes.args[1:] and _aten.cat.default not in readers:
        put_on(codes, float(argument(source, 1)), int(argument(source, 2)))


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


def _pool_on_its_inputs_grid(model: GraphModule, pool: Node) -> None:
    """``quantize(pool(x))`` as ``quantize(1 * round(pool(x)))``, rounded to the grid of x.

    The kernel has one grid. The converter puts x on the grid behind it, together with its padding,
    for all that read x padded alike: convolutions lose what they read, or stay float. A change of
    grids without an operator between is one that it merges with the pooling, and refuses then.
    Where others read x, what is padded is ``1 * x``, and not theirs.
    """
    source: Any = pool.args[0]
    if source.target not in DEQUANTIZE or argument(source, 5) is not torch.int8:
        return
    own = source.args[1:]
    others = [u for u in pool.users if u.target in QUANTIZE and u.args[1:] != own]
    value = pool.meta.get("val")
    if not others or not isinstance(value, Tensor):
        return
    axes = value.dim()
    if len(argument(source, 0).users) > 1 and any(argument(pool, 3) or ()):
        pool.replace_input_with(source, round_behind(_times_one(model, source, axes), own))
    product = _times_one(model, round_behind(pool, own), axes)
    for user in others:
        user.replace_input_with(pool, product)


def _times_one(model: GraphModule, values: Node, axes: int) -> Node:
    """A product with an int8 constant of so many axes; nobody reads it yet."""
    codes = torch.full([1] * axes, 64, dtype=torch.int8)
    one = new_tensor(model, "times_one", codes, values)
    with model.graph.inserting_after(values):
        factor = model.graph.call_function(DEQUANTIZE[0], (one, 1 / 64, 0, -127, 127, torch.int8))
    with model.graph.inserting_after(factor):
        product = model.graph.call_function(_aten.mul.Tensor, (values, factor))
    product.meta["val"] = values.meta.get("val")
    return product


def _pad_with_zeros(model: GraphModule, node: Node) -> None:
    """``pad(x, value=c)`` as ``pad(x) + border``.

    The converter pads codes, with the nearest that their grid has: the grid of what is padded.
    """
    widths, mode, fill = argument(node, 1), argument(node, 2), argument(node, 3)
    value = node.meta.get("val")
    if mode not in (None, "constant") or not fill or not isinstance(value, Tensor):
        return
    sizes = value.shape[-(len(widths) // 2) :]
    if not all(isinstance(size, int) for size in sizes):
        return
    pads = list(zip(widths[::2], widths[1::2], strict=True))[::-1]
    inner = torch.zeros([n - low - high for n, (low, high) in zip(sizes, pads, strict=True)])
    border = nn.Parameter(nn.functional.pad(inner, widths, value=fill), requires_grad=False)
    constant = new_tensor(model, f"{node.name}_border", border, node)
    set_argument(node, 3, 0.0)
    with model.graph.inserting_after(node):
        total = model.graph.call_function(_aten.add.Tensor, (node, constant))
    total.meta["val"] = value
    node.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)
