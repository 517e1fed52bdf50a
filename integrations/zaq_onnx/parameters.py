"""Weights and biases as the integers that runtimes want.

Weights become int8 constants behind one DequantizeLinear, whatever the exporter put between.
Runtimes round biases to int32, which count steps of the input's scale times the channel's weight
scale. A channel that is nearly dead (a BatchNorm gain of 1e-9) has so small a scale that its bias
overflows, and the runtime saturates it, silently; a channel whose weights are all zero may have any
scale, and one that is too coarse rounds the bias.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto

from zaq_onnx.graph import MOVES, Array, Graph, attribute, make, set_attribute

# ---- Weights -------------------------------------------------------------------------------------


def drop_identities(graph: Graph) -> None:
    """Identity nodes, but for those that make an output of an input."""
    for node in graph.of_type("Identity"):
        if node.output[0] not in graph.outputs:
            graph.rename_input(node.output[0], node.input[0])
            graph.remove(node)


def fold_weights(graph: Graph) -> None:
    """Constants that are quantized, limited or transposed are computed now."""
    for node in list(graph.nodes):
        if node.op_type == "QuantizeLinear" and graph.array(node.input[0]) is not None:
            _replace(graph, node, quantize_linear(graph, node))
        elif node.op_type == "Clip" and _integers(graph.array(node.input[0])):
            _replace(graph, node, _clipped(graph, node))
    producers = graph.producers()
    for node in list(graph.nodes):
        source = producers.get(node.input[0]) if node.input else None
        if node.op_type != "Transpose" or source is None or not _constant_weight(graph, source):
            continue
        perm = list(attribute(node, "perm"))
        turned = make("DequantizeLinear", list(source.input), node.output[0])
        codes = graph.array(source.input[0])
        assert codes is not None
        turned.input[0] = graph.add_constant(f"{source.input[0]}.t", codes.transpose(perm))
        set_attribute(turned, "axis", perm.index(_axis(source, codes.ndim)))
        graph.insert_before(node, turned)
        graph.remove(node)


def _clipped(graph: Graph, node: NodeProto) -> Array:
    value = graph.array(node.input[0])
    assert value is not None
    bounds = [graph.array(name) if name else None for name in node.input[1:]]
    low, high = [*bounds, None, None][:2]
    clipped: Array = np.clip(value, low, high).astype(value.dtype)
    return clipped


def _constant_weight(graph: Graph, node: NodeProto) -> bool:
    return node.op_type == "DequantizeLinear" and graph.array(node.input[0]) is not None


def _axis(node: NodeProto, ndim: int) -> int:
    return int(attribute(node, "axis", 1)) % ndim


def _integers(value: Array | None) -> bool:
    return value is not None and value.dtype.kind in "iu"


def _replace(graph: Graph, node: NodeProto, value: Array) -> None:
    name = graph.add_constant(f"{node.input[0]}.int8", value)
    graph.rename_input(node.output[0], name)
    graph.remove(node)


def quantize_linear(graph: Graph, node: NodeProto, value: Array | None = None) -> Array:
    """What a QuantizeLinear with constant grid makes of its constant input, or of another value."""
    x = graph.array(node.input[0]) if value is None else value
    scale = graph.array(node.input[1])
    zero = graph.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if x is None or scale is None:
        raise ValueError(f"QuantizeLinear {node.name!r}: input and scale must be constants.")
    zero = np.zeros_like(scale, np.uint8) if zero is None else zero
    if scale.ndim and x.ndim:
        shape = [1] * x.ndim
        shape[_axis(node, x.ndim)] = -1
        scale, shaped = scale.reshape(shape), zero.reshape(shape)
    else:
        shaped = zero
    limits = np.iinfo(zero.dtype)
    codes = np.rint(x.astype(np.float32) / scale) + shaped.astype(np.float32)
    return np.clip(codes, limits.min, limits.max).astype(zero.dtype)


# ---- Biases, and scales beside which they fit ----------------------------------------------------

LARGEST = 2.0**30
"""Of a bias; as much again is left for the sum of the products."""

_SMALLEST = 2.0**-120
"""Of the product of two scales; float32 loses digits below 2^-126."""


def room_for_biases(graph: Graph) -> list[str]:
    """Raise the scales of channels whose bias would overflow; the graph is changed in place.

    A channel's levels are rounded anew on the raised scale: mostly all become zero, as products so
    small vanish beside the bias. Channels whose bias fits, and levels in them, are as they were.

    Returns:
        Names of the weights that were changed.
    """
    changed = []
    for weight in _weights(graph):
        floors, exact = _floors(graph, weight)
        name = weight.input[0]
        if floors is not None and exact is not None and _raise(graph, weight, floors, exact):
            changed.append(name)
    return changed


def _weights(graph: Graph) -> Iterator[NodeProto]:
    for node in graph.of_type("DequantizeLinear"):
        integers = graph.array(node.input[0])
        if integers is not None and integers.dtype == np.int8 and integers.ndim >= 2:
            yield node


def _floors(graph: Graph, weight: NodeProto) -> tuple[Array | None, Array | None]:
    """(channels,) float64: the smallest scales that every layer's bias allows, and the best scale.

    The second holds the scale on which the largest bias is finest; both are None for a weight
    without such a layer.
    """
    producers = graph.producers()
    pairs: list[tuple[Array, Array]] = []
    for layer in graph.of_type("Conv", "Gemm"):
        if len(layer.input) < 3 or layer.input[1] != weight.output[0]:
            continue
        step, bias = _step(graph, producers, layer.input[0]), graph.array(layer.input[2])
        if step is None or bias is None or bias.dtype.kind != "f":
            continue
        size = np.abs(bias.astype(np.float64).reshape(-1)) / (step * LARGEST)
        pairs.append((np.maximum(size, _SMALLEST / step), size))
    if not pairs:
        return None, None
    return np.max([f for f, _ in pairs], 0), np.max([s for _, s in pairs], 0)


def _step(graph: Graph, producers: dict[str, NodeProto], name: str) -> float | None:
    """Scale of a tensor that lies on one grid, seen through what only moves numbers."""
    node = producers.get(name)
    while node is not None and node.op_type in MOVES:
        node = producers.get(node.input[0])
    if node is None or node.op_type != "DequantizeLinear":
        return None
    scale = graph.array(node.input[1])
    return float(scale.reshape(-1)[0]) if scale is not None and scale.size == 1 else None


def _raise(graph: Graph, weight: NodeProto, floors: Array, best: Array) -> bool:
    """Put a weight's channels on scales of at least these; whether any was below."""
    integers, scale = (graph.array(name) for name in weight.input[:2])
    assert integers is not None
    if scale is None:
        return False
    axis = _channel_axis(graph, weight) if scale.size == 1 else int(attribute(weight, "axis", 1))
    axis %= integers.ndim
    if integers.shape[axis] != floors.size:
        return False
    old = np.broadcast_to(scale.astype(np.float64).reshape(-1), floors.shape)
    levels = np.moveaxis(integers, axis, 0).reshape(len(floors), -1)
    dead = ~levels.any(1)
    # One scale for all channels is not given up for dead ones.
    freed = dead & (best > 0) & (scale.size > 1)
    target = np.where(freed, np.maximum(best, floors), np.maximum(old, floors))
    scales = target.astype(np.float32)
    low = (scales < target) & (target != old)
    scales[low] = np.nextafter(scales[low], np.float32(np.inf))
    if np.array_equal(scales, old.astype(np.float32)):
        return False
    moved = scales != old.astype(np.float32)
    levels = levels.copy()
    levels[moved] = np.rint(levels[moved] * (old / scales)[moved, None]).astype(np.int8)
    shape = np.moveaxis(integers, axis, 0).shape
    weight.input[0] = graph.add_constant(
        weight.input[0], np.ascontiguousarray(np.moveaxis(levels.reshape(shape), 0, axis))
    )
    weight.input[1] = graph.add_constant(weight.input[1], scales)
    if scale.size == 1:
        set_attribute(weight, "axis", axis)
        if len(weight.input) > 2 and weight.input[2]:
            zeros = np.zeros(len(floors), np.int8)
            weight.input[2] = graph.add_constant(weight.input[2], zeros)
    return True


def _channel_axis(graph: Graph, weight: NodeProto) -> int:
    """Axis of the output channels of the layers behind a weight."""
    for layer in graph.of_type("Gemm"):
        if layer.input[1] == weight.output[0]:
            return 0 if attribute(layer, "transB", 0) else 1
    return 0


def bias_of_outputs(graph: Graph) -> None:
    """Biases of layers whose output stays float become int32, or runtimes run these in float.

    Biases of layers whose output is quantized are rounded to int32 by the runtime itself.
    """
    consumers, producers = graph.consumers(), graph.producers()
    for node in graph.of_type("Conv", "Gemm"):
        if len(node.input) < 3 or not node.input[2]:
            continue
        if any(c.op_type == "QuantizeLinear" for c in consumers[node.output[0]]):
            continue
        x, w = producers.get(node.input[0]), producers.get(node.input[1])
        bias = graph.array(node.input[2])
        if x is None or w is None or bias is None or w.op_type != "DequantizeLinear":
            continue
        sx, sw = graph.array(x.input[1]), graph.array(w.input[1])
        if x.op_type != "DequantizeLinear" or sx is None or sx.ndim or sw is None:
            continue
        scale = (sx * sw.reshape(-1)).astype(np.float32)
        integers = np.rint(bias.astype(np.float64) / scale)
        if not np.isfinite(integers).all() or np.abs(integers).max(initial=0) > 2**31 - 1:
            continue
        name = node.input[2]
        codes = graph.add_constant(f"{name}.int32", integers.astype(np.int32))
        grid = graph.add_constant(f"{name}.scale", np.broadcast_to(scale, bias.shape).copy())
        dequantize = make("DequantizeLinear", [codes, grid], graph.free(f"{name}.float"), axis=0)
        graph.insert_before(node, dequantize)
        node.input[2] = dequantize.output[0]
