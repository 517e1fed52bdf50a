"""Two grids behind each other that ONNX Runtime would merge, kept apart."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from zaq_onnx.graph import Graph, make

MOVES = ("MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Pad")
"""Operators over which ONNX Runtime carries a grid forward."""


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
        if first is None or _same(graph, first, quantize):
            continue
        readers = graph.consumers()[quantize.output[0]]
        if not readers or any(reader.op_type != "DequantizeLinear" for reader in readers):
            continue
        zero = graph.array(quantize.input[2]) if len(quantize.input) > 2 else np.zeros((), np.uint8)
        if zero is None or zero.ndim:
            continue
        _whole_clip(graph, quantize, zero.dtype)
        count += 1
    return count


def _grid_before(producers: dict[str, NodeProto], quantize: NodeProto) -> NodeProto | None:
    node = producers.get(quantize.input[0])
    while node is not None and node.op_type in MOVES:
        node = producers.get(node.input[0])
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _same(graph: Graph, first: NodeProto, second: NodeProto) -> bool:
    """Whether two nodes have one grid, so that merging them changes nothing."""
    for a, b in zip(first.input[1:], second.input[1:], strict=False):
        x, y = graph.array(a), graph.array(b)
        if x is None or y is None or x.dtype != y.dtype or not np.array_equal(x, y):
            return False
    return len(first.input) == len(second.input)


def _whole_clip(graph: Graph, quantize: NodeProto, dtype: np.dtype) -> None:
    limits = np.iinfo(dtype)
    ends = []
    for end in (limits.min, limits.max):
        name = f"limit.{dtype.name}.{end}"
        is_constant = name in graph.constants
        ends.append(name if is_constant else graph.add_constant(name, np.array(end, dtype)))
    raw = graph.free(f"{quantize.output[0]}.raw")
    clip = make("Clip", [raw, *ends], quantize.output[0])
    quantize.output[0] = raw
    graph.insert_after(quantize, clip)
