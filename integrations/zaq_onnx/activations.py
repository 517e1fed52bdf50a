"""Activations: limits, reshapes and pools such that runtimes compute in integers.

Limits (ReLU, narrow grids) move behind the QuantizeLinear, where they limit integers; reshapes move
in between quantize and dequantize. All of it keeps the function: rounding to a grid is monotone, so
it may change places with a limit.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from zaq_onnx.graph import MOVES, Array, Graph, attribute, make
from zaq_onnx.parameters import quantize_linear

RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


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
    if (low, high) != (whole.min, whole.max):
        _clip_behind(graph, quantize, low, high, dtype)


def _clip_behind(graph: Graph, quantize: NodeProto, low: int, high: int, dtype: np.dtype) -> None:
    """A Clip of the integers that a QuantizeLinear makes; limits are constants of all of them."""
    raw = graph.free(f"{quantize.output[0]}.raw")
    ends = []
    for end in (low, high):
        name = f"limit.{dtype.name}.{end}"
        is_constant = name in graph.constants
        ends.append(name if is_constant else graph.add_constant(name, np.array(end, dtype)))
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
        if not node.input or node.op_type in (
            *RESHAPES,
            "ReduceMean",
            "Gemm",
            "Transpose",
            "MatMul",
        ):
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
    for reshape in graph.of_type(*RESHAPES):  # x -> DQ -> Reshape becomes x -> Reshape -> DQ
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
        if reshape is None or reshape.op_type not in RESHAPES:
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


def keep_grids_apart(graph: Graph) -> int:
    """``Q -> DQ -> Q' -> DQ'`` keeps its second grid: a Clip to all of its integers follows Q'.

    ONNX Runtime makes one pair of the two, on a grid of its own that takes the finer steps of the
    first: 4-bit activations of a file would be 8-bit ones when it runs. It also does so where
    pooling and reshaping stand between.

    Returns:
        How many grids were kept.
    """
    producers, count = graph.producers(), 0
    for quantize in graph.of_type("QuantizeLinear"):
        first = _grid_before(producers, quantize)
        if first is None or _same_grid(graph, first, quantize):
            continue
        readers = graph.consumers()[quantize.output[0]]
        if not readers or any(reader.op_type != "DequantizeLinear" for reader in readers):
            continue
        zero = graph.array(quantize.input[2]) if len(quantize.input) > 2 else np.zeros((), np.uint8)
        if zero is None or zero.ndim:
            continue
        limits = np.iinfo(zero.dtype)
        _clip_behind(graph, quantize, int(limits.min), int(limits.max), zero.dtype)
        count += 1
    return count


def _grid_before(producers: dict[str, NodeProto], quantize: NodeProto) -> NodeProto | None:
    node = producers.get(quantize.input[0])
    while node is not None and node.op_type in MOVES:
        node = producers.get(node.input[0])
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _same_grid(graph: Graph, first: NodeProto, second: NodeProto) -> bool:
    """Whether two nodes have one grid, so that merging them changes nothing."""
    for a, b in zip(first.input[1:], second.input[1:], strict=False):
        x, y = graph.array(a), graph.array(b)
        if x is None or y is None or x.dtype != y.dtype or not np.array_equal(x, y):
            return False
    return len(first.input) == len(second.input)
