"""Small checkpoints: packed codes and ``zaq::pwlq_dequantize`` in place of int8 weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from zaq_plugin.pwlq import pack_codes, packed_size, unpack_codes
from zaq_pt2e.graph import argument, new_tensor, tensor_at

_ops = torch.ops.quantized_decomposed


@torch.library.custom_op("zaq::unpack_codes", mutates_args=())
def unpack_op(packed: Tensor, width: int, shape: Sequence[int]) -> Tensor:
    """Dense codes of ``width`` bits as a uint8 tensor of the given shape."""
    return unpack_codes(packed, width, math.prod(shape)).reshape(list(shape))


@unpack_op.register_fake
def _(packed: Tensor, width: int, shape: Sequence[int]) -> Tensor:
    return packed.new_empty(list(shape), dtype=torch.uint8)


OPERATORS = (torch.ops.zaq.unpack_codes.default, torch.ops.zaq.pwlq_dequantize.default)


def pack(converted: GraphModule) -> GraphModule:
    """A copy of a converted model whose int8 weights are packed codes and codebooks.

    The codes take as many bits as the largest number of distinct levels in a channel needs, so a
    weight of ``stored_bits`` 5 takes 5 bits. What the model computes stays the same bit for bit.
    Save it with ``torch.export.save``; whoever loads it must import ``zaq_pt2e`` first. `unpack`
    brings the int8 weights back, which int8 kernels want.

    Raises:
        ValueError: the model holds no int8 weight per channel, or none that gets smaller.
    """
    model = copy.deepcopy(converted)
    done = 0
    for node in list(model.graph.nodes):
        if node.target is _ops.dequantize_per_channel.default and _is_int8(model, node):
            done += _pack_weight(model, node)
    if not done:
        raise ValueError(
            "pack: no int8 weight was packed. Expected a model from convert_pt2e (its default "
            "fold_quantize=True) with weights of at most 7 stored bits."
        )
    return _tidied(model)


def _is_int8(model: GraphModule, node: Node) -> bool:
    codes, zero = argument(node, 0), argument(node, 2)
    if not isinstance(codes, Node) or codes.op != "get_attr" or not isinstance(zero, Node):
        return False
    if tensor_at(model, str(codes.target)).dtype != torch.int8 or zero.op != "get_attr":
        return False
    return not bool(tensor_at(model, str(zero.target)).any())


def _pack_weight(model: GraphModule, node: Node) -> bool:
    source, scale, _, axis = node.args[:4]
    if not isinstance(source, Node) or not isinstance(axis, int):
        return False
    integers = tensor_at(model, str(source.target))
    codes, codebook = codes_and_codebook(integers, axis)
    width = max(1, math.ceil(math.log2(codebook.shape[1])))
    if packed_size(codes.numel(), width) + codebook.numel() >= integers.numel():
        return False
    name = str(source.target)
    packed = new_tensor(model, f"{name}_codes", pack_codes(codes, width), node)
    book = new_tensor(model, f"{name}_codebook", codebook, node)
    with model.graph.inserting_before(node):
        unpacked = model.graph.call_function(OPERATORS[0], (packed, width, list(codes.shape)))
        values = model.graph.call_function(OPERATORS[1], (unpacked, book, scale, axis))
    values.meta = dict(node.meta)
    node.replace_all_uses_with(values)
    model.graph.erase_node(node)
    return True


def codes_and_codebook(integers: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Codes (the same shape, uint8) and codebook (channels, levels) of an integer weight.

    A channel's codebook holds its distinct values in ascending order; shorter ones repeat their
    last value.
    """
    rows = integers.movedim(axis, 0).reshape(integers.shape[axis], -1)
    books, parts = [], []
    for row in rows:
        levels, inverse = torch.unique(row, sorted=True, return_inverse=True)
        books.append(levels)
        parts.append(inverse.to(torch.uint8))
    size = max(len(book) for book in books)
    codebook = torch.stack([torch.cat([b, b[-1:].expand(size - len(b))]) for b in books])
    moved = integers.movedim(axis, 0)
    return torch.stack(parts).reshape(moved.shape).movedim(0, axis).contiguous(), codebook


def unpack(packed: GraphModule) -> GraphModule:
    """A copy of a packed model with int8 weights again, bit for bit those of the converted model.

    Raises:
        ValueError: the model holds no packed weight.
    """
    model = copy.deepcopy(packed)
    nodes = [n for n in model.graph.nodes if n.target is OPERATORS[1]]
    if not nodes:
        raise ValueError("unpack: the model holds no packed weight; expected one from pack(...).")
    for node in nodes:
        unpacked, book, scale, axis = node.args
        codes = unpack_op(
            tensor_at(model, str(unpacked.args[0].target)), unpacked.args[1], unpacked.args[2]
        )
        codebook = tensor_at(model, str(book.target))
        ones = torch.ones(codebook.shape[0], device=codebook.device)
        integers = torch.ops.zaq.pwlq_dequantize(codes, codebook, ones, axis).to(torch.int8)
        name = str(book.target).removesuffix("_codebook")
        weight = new_tensor(model, name, integers, node)
        zeros = torch.zeros_like(ones, dtype=torch.int32)
        zero = new_tensor(model, f"{name}_zero_point", zeros, node)
        with model.graph.inserting_before(node):
            values = model.graph.call_function(
                _ops.dequantize_per_channel.default,
                (weight, scale, zero, axis, -127, 127, torch.int8),
            )
        values.meta = dict(node.meta)
        node.replace_all_uses_with(values)
        model.graph.erase_node(node)
    return _tidied(model)


def _tidied(model: GraphModule) -> GraphModule:
    """Without dead nodes and the tensors that nobody reads any more."""
    model.graph.eliminate_dead_code()
    for node in list(model.graph.nodes):
        if node.op == "get_attr" and not node.users:
            model.graph.erase_node(node)
    tidy = GraphModule(model, model.graph)
    tidy.meta.update(model.meta)
    return tidy
