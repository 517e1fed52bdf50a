"""The graph that devices run: every activation a full-range int8 tensor, every layer int8."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch.fx import GraphModule, Node

from zaq_pt2e.graph import Layer, argument, is_constant, layers

_ops = torch.ops.quantized_decomposed
QUANTIZE = (_ops.quantize_per_tensor.default,)
DEQUANTIZE = (_ops.dequantize_per_tensor.default,)
WEIGHT = (_ops.dequantize_per_channel.default, *DEQUANTIZE)
_SHIFT = 128


def to_int8(converted: GraphModule, who: str) -> GraphModule:
    """A copy whose activations are int8: the same levels, codes and zero points 128 lower.

    Args:
        converted: From ``convert_pt2e``. Twice is once.
        who: The tool that asks, for errors.

    Raises:
        ValueError: activations of less than 8 bits, or a layer that is quantized by half.
    """
    refuse(converted, who)
    return _moved(converted, torch.uint8, torch.int8, -_SHIFT)


def to_uint8(converted: GraphModule) -> GraphModule:
    """The way back, for runtimes of x86: a copy whose full-range activations are uint8."""
    return _moved(converted, torch.int8, torch.uint8, _SHIFT)


def _moved(converted: GraphModule, source: torch.dtype, to: torch.dtype, shift: int) -> GraphModule:
    model = copy.deepcopy(converted)
    for node in model.graph.nodes:
        if node.target in (*QUANTIZE, *DEQUANTIZE) and node.args[5] == source:
            x, scale, zero, low, high, _ = node.args
            if high - low == 255:  # weights of one grid have -127 .. 127
                node.args = (x, scale, zero + shift, low + shift, high + shift, to)
                if x.op == "get_attr":
                    _move_codes(model, x.target, source, to, shift)
    model.recompile()
    return model


def _move_codes(
    model: GraphModule, target: str, source: torch.dtype, to: torch.dtype, shift: int
) -> None:
    """The same for a constant that is stored as codes, such as a scale that multiplies a layer."""
    path, _, name = target.rpartition(".")
    owner = model.get_submodule(path)
    codes = getattr(owner, name)
    if codes.dtype != source:
        return  # moved already: several nodes read it
    moved = (codes.to(torch.int16) + shift).to(to)
    delattr(owner, name)
    owner.register_buffer(name, moved)


def refuse(converted: GraphModule, who: str) -> None:
    """Raise ValueError for what int8 kernels of devices would compute wrongly.

    Their tensors are full-range int8, whatever narrower range a graph states: codes go on to the
    ends of int8. A layer with quantized weights and a float input is left out, and its float
    neighbours read what was never written.
    """
    for node in converted.graph.nodes:
        if node.target not in QUANTIZE or is_constant(node):
            continue
        low, high = int(node.args[3]), int(node.args[4])
        if high - low < 255:
            bits = (high - low).bit_length()
            raise ValueError(
                f"{who}: {_readers(converted, node)} {bits}-bit activations ({low} to {high}), and "
                "its kernels know full-range int8 only; quantize with activations=8."
            )
    all_layers = list(int8_layers(converted))
    half = [x.name for x in layers(converted) if _weight(x) and not _from_grid(x)]
    if half:
        more = f" and {len(half) - 1} more" if len(half) > 1 else ""
        raise ValueError(
            f"{who}: {half[0]}{more} has quantized weights but a float input, for which its int8 "
            "kernels have no use; quantize with activations=8, or leave the layer float."
        )
    if not all_layers:
        raise ValueError(
            f"{who}: no layer of this model has int8 weights and an int8 input. Expected a float "
            "model, or one from convert_pt2e that PWLQQuantizer or with_pwlq has quantized."
        )


def int8_layers(converted: GraphModule) -> Iterator[Layer]:
    """Layers with integer weights and an integer input, in the graph's order."""
    return (x for x in layers(converted) if _weight(x) and _from_grid(x))


def is_converted(model: object) -> bool:
    """Whether a model is a graph with dequantize nodes."""
    return isinstance(model, GraphModule) and any(
        node.target in WEIGHT for node in model.graph.nodes
    )


def _weight(layer: Layer) -> bool:
    weight = argument(layer.node, 1)
    return isinstance(weight, Node) and weight.target in WEIGHT


def _from_grid(layer: Layer) -> bool:
    source = argument(layer.node, 0)
    return isinstance(source, Node) and source.target in DEQUANTIZE


def _readers(model: GraphModule, quantize: Node) -> str:
    values = set(quantize.users)
    names = [x.name for x in layers(model) if argument(x.node, 0) in values]
    if names:
        return f"{names[0]} takes"
    readers = [user.name for value in values for user in value.users]
    return f"{readers[0] if readers else quantize.name} takes"
