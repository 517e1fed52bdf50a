"""From what the exporter writes to a graph that runtimes run in integers.

Weights become int8 constants behind one DequantizeLinear, whatever stood between; limits of
activations (ReLU, narrow grids) move behind the QuantizeLinear, where they limit integers; and
reshapes move in between quantize and dequantize. All of it keeps the function: rounding to a grid
is monotone, so it may change places with a limit.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from zaq_onnx.bias_room import room_for_biases
from zaq_onnx.graph import Array, Graph, attribute, make, set_attribute
from zaq_onnx.padding import pads_into_convolutions
from zaq_onnx.pooling import pools_without_padding

MOVES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def tidy(graph: Graph) -> None:
    """All passes; the graph is changed in place."""
    drop_identities(graph)
    fold_weights(graph)
    pads_into_convolutions(graph)
    pools_without_padding(graph)
    limits_behind_quantize(graph)
    means_to_pools(graph)
    reshapes_behind_quantize(graph)
    share_quantizers(graph)
    room_for_biases(graph)
    bias_of_outputs(graph)
    graph.prune()
    graph.sort()


def drop_identities(graph: Graph) -> None:
    """Identity nodes, but for those that make an output of an input."""
    for node in graph.of_type("Identity"):
        if node.output[0] not in graph.outputs:
            graph.rename_input(node.output[0], node.input[0])
            graph.remove(node)


# ---- weights -------------------------------------------------------------------------------------


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


# ---- activations ---------------------------------------------------------------------------------


def limits_behind_quantize(graph: Graph) -> None:
    """``Relu`` and ``Clip`` in front of QuantizeLinear limit the integers behind it, or vanish."""
    changed = True
    while changed:
        changed = False
        consumers, producers = graph.consumers(), graph.producers()
        for quantize in graph.of_type("QuantizeLinear"):
            limit = producers.get(quantize.input[0])
            if limit is None or limit.op_type not in ("Relu", "Clip"):
                continue
            only = all(c.op_type == "QuantizeLinear" for c in consumers[limit.output[0]])
            if not only or limit.output[0] in graph.outputs:
                continue
            bounds = _bounds(graph, limit)
            zero = _zero_point(graph, quantize)
            if bounds is None or zero is None or zero.ndim:
                continue
            _limit_integers(graph, quantize, bounds, zero.dtype)
            quantize.input[0] = limit.input[0]
            changed = True
            break


def _bounds(graph: Graph, limit: NodeProto) -> tuple[float, float] | None:
    if limit.op_type == "Relu":
        return 0.0, np.inf
    ends = []
    for position, default in ((1, -np.inf), (2, np.inf)):
        name = limit.input[position] if len(limit.input) > position else ""
        value = graph.array(name) if name else np.float32(default)
        if value is None or not np.issubdtype(value.dtype, np.floating):
            return None
        ends.append(float(value))
    return ends[0], ends[1]


def _zero_point(graph: Graph, node: NodeProto) -> Array | None:
    if len(node.input) < 3 or not node.input[2]:
        return np.zeros((), np.uint8)
    return graph.array(node.input[2])


def _limit_integers(
    graph: Graph, quantize: NodeProto, bounds: tuple[float, float], dtype: np.dtype
) -> None:
    low, high = (int(quantize_linear(graph, quantize, np.array(b, np.float32))) for b in bounds)
    whole = np.iinfo(dtype)
    if (low, high) == (whole.min, whole.max):
        return
    raw = graph.free(f"{quantize.output[0]}.raw")
    ends = [
        graph.add_constant(f"limit.{dtype.name}.{end}", np.array(end, dtype))
        if f"limit.{dtype.name}.{end}" not in graph.constants
        else f"limit.{dtype.name}.{end}"
        for end in (low, high)
    ]
    clip = make("Clip", [raw, *ends], quantize.output[0])
    quantize.output[0] = raw
    graph.insert_after(quantize, clip)


def means_to_pools(graph: Graph) -> None:
    """A mean over height and width is GlobalAveragePool, which has an integer kernel."""
    for node in graph.of_type("ReduceMean"):
        axes = graph.array(node.input[1]) if len(node.input) > 1 else attribute(node, "axes")
        if axes is None or _rank(graph, node.input[0]) != 4:
            continue
        if sorted(int(a) % 4 for a in axes) != [2, 3]:
            continue
        output = node.output[0]
        if attribute(node, "keepdims", 1):
            nodes = [make("GlobalAveragePool", [node.input[0]], output)]
        else:
            pooled = graph.free(f"{output}.pooled")
            shape = graph.add_constant(f"{output}.shape", np.array([0, -1], np.int64))
            nodes = [
                make("GlobalAveragePool", [node.input[0]], pooled),
                make("Reshape", [pooled, shape], output),
            ]
        graph.insert_before(node, *nodes)
        graph.remove(node)


def _rank(graph: Graph, name: str) -> int | None:
    producers = graph.producers()
    while name in producers:
        node = producers[name]
        if node.op_type in ("Conv", "MaxPool", "AveragePool"):
            weight = producers.get(node.input[1]) if node.op_type == "Conv" else None
            codes = graph.array(weight.input[0]) if weight is not None else None
            if codes is not None:
                return int(codes.ndim)
        if not node.input or node.op_type in (*MOVES, "ReduceMean", "Gemm", "Transpose", "MatMul"):
            return None
        name = node.input[0]
    for value in graph.model.graph.input:
        if value.name == name:
            return len(value.type.tensor_type.shape.dim)
    return None


def reshapes_behind_quantize(graph: Graph) -> None:
    """``x -> Reshape -> Q -> DQ`` becomes ``x -> Q -> Reshape -> DQ``: a reshape of integers."""
    while _move_one_reshape(graph):
        pass
    producers = graph.producers()
    for reshape in graph.of_type(*MOVES):  # x -> DQ -> Reshape becomes x -> Reshape -> DQ
        values = producers.get(reshape.input[0])
        if values is None or values.op_type != "DequantizeLinear":
            continue
        scale = graph.array(values.input[1])
        if values.input[0] in graph.constants or scale is None or scale.ndim:
            continue
        codes = graph.free(f"{reshape.output[0]}.codes")
        after = make("DequantizeLinear", [codes, *values.input[1:]], reshape.output[0])
        reshape.input[0], reshape.output[0] = values.input[0], codes
        graph.insert_after(reshape, after)
        producers[after.output[0]] = after


def _move_one_reshape(graph: Graph) -> bool:
    consumers, producers = graph.consumers(), graph.producers()
    for quantize in graph.of_type("QuantizeLinear"):
        reshape = producers.get(quantize.input[0])
        if reshape is None or reshape.op_type not in MOVES:
            continue
        if len(consumers[reshape.output[0]]) > 1 or reshape.output[0] in graph.outputs:
            continue
        source, codes = reshape.input[0], quantize.output[0]
        inner = graph.free(f"{codes}.flat")
        graph.remove(quantize)
        quantize.input[0], quantize.output[0] = source, inner
        graph.nodes.insert(graph.nodes.index(reshape), quantize)
        reshape.input[0], reshape.output[0] = inner, codes
        return True
    return False


def share_quantizers(graph: Graph) -> None:
    """QuantizeLinear nodes with the same input and grid become one."""
    seen: dict[tuple[object, ...], str] = {}
    for kinds in (("QuantizeLinear",), ("Clip",)):
        for node in graph.of_type(*kinds):
            values = [graph.array(n) for n in node.input[1:]]
            if any(v is None for v in values):
                continue
            key = (node.op_type, node.input[0], *((v.dtype, v.tobytes()) for v in values))  # type: ignore[union-attr]
            if key in seen and node.output[0] not in graph.outputs:
                graph.rename_input(node.output[0], seen[key])
                graph.remove(node)
            else:
                seen.setdefault(key, node.output[0])


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
