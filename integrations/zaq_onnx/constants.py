"""Evaluating constant parts of a graph, carefully: files may be damaged or hostile."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from zaq_onnx.graph import Array, Graph, attribute

LIMIT = 1 << 31
"""Elements of one constant beyond which a file is refused."""

_WIDTHS = {TensorProto.INT4: 4, TensorProto.UINT4: 4, TensorProto.INT2: 2, TensorProto.UINT2: 2}


def check_tensor(tensor: TensorProto) -> None:
    """Whether a constant's bytes fit its shape, before anything is allocated.

    Raises:
        ValueError: they do not.
    """
    if tensor.data_location == TensorProto.EXTERNAL:
        raise ValueError(
            f"tensor {tensor.name!r} lies in another file; zaq_onnx writes and reads one file."
        )
    count = math.prod(tensor.dims) if all(d >= 0 for d in tensor.dims) else -1
    if not 0 <= count <= LIMIT:
        raise ValueError(f"tensor {tensor.name!r} has the impossible shape {list(tensor.dims)}.")
    if not tensor.HasField("raw_data"):
        return
    bits = _WIDTHS.get(tensor.data_type) or 8 * _itemsize(tensor)
    expected = (count * bits + 7) // 8
    if len(tensor.raw_data) != expected:
        raise ValueError(
            f"tensor {tensor.name!r} of shape {list(tensor.dims)} takes {expected} bytes; the file "
            f"holds {len(tensor.raw_data)}. It is damaged."
        )


def _itemsize(tensor: TensorProto) -> int:
    try:
        return int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"tensor {tensor.name!r} has the unknown type {tensor.data_type}."
        ) from error


def evaluate(graph: Graph, name: str, producers: dict[str, NodeProto]) -> Array:
    """The value of a tensor that depends on constants only.

    Raises:
        ValueError: it depends on an input, an operator is none of those that `pack` writes, or a
            shape or an index is out of range.
    """
    known = graph.array(name)
    if known is not None:
        return known
    node = producers.get(name)
    if node is None or node.op_type not in _OPERATORS:
        what = "the model's input" if node is None else f"operator {node.op_type}"
        raise ValueError(f"weight {name!r} depends on {what}, so it is no constant.")
    values = [evaluate(graph, n, producers) for n in node.input if n]
    try:
        return _OPERATORS[node.op_type](node, *values)
    except ValueError as error:
        raise ValueError(f"weight {name!r} ({node.op_type}): {error}") from error
    except (TypeError, IndexError, OverflowError, MemoryError) as error:
        raise ValueError(f"weight {name!r} ({node.op_type}): damaged, {error}.") from error


def _cast(node: NodeProto, x: Array) -> Array:
    return x.astype(helper.tensor_dtype_to_np_dtype(attribute(node, "to")))


def _shift(node: NodeProto, x: Array, by: Array) -> Array:
    _broadcast(x, by)
    left = attribute(node, "direction", b"LEFT") == b"LEFT"
    return (np.left_shift if left else np.right_shift)(x, by)


def _and(_: NodeProto, x: Array, y: Array) -> Array:
    _broadcast(x, y)
    return np.bitwise_and(x, y)


def _or(_: NodeProto, x: Array, y: Array) -> Array:
    _broadcast(x, y)
    return np.bitwise_or(x, y)


def _broadcast(x: Array, y: Array) -> None:
    if math.prod(np.broadcast_shapes(x.shape, y.shape)) > LIMIT:
        raise ValueError(f"shapes {x.shape} and {y.shape} are impossibly large together.")


def _reshape(_: NodeProto, x: Array, shape: Array) -> Array:
    return x.reshape([int(d) for d in shape])


def _slice(_: NodeProto, x: Array, start: Array, end: Array) -> Array:
    return x[int(start[0]) : int(end[0])]


def _transpose(node: NodeProto, x: Array) -> Array:
    return x.transpose(attribute(node, "perm"))


def _gather(node: NodeProto, book: Array, codes: Array) -> Array:
    if attribute(node, "axis", 0) != 1 or book.ndim != 2 or codes.ndim != 2:
        raise ValueError("a codebook and its codes must be matrices.")
    if len(book) != len(codes):
        raise ValueError(f"{len(codes)} channels of codes, but {len(book)} codebooks.")
    highest = int(codes.max(initial=0))
    if highest >= book.shape[1] or int(codes.min(initial=0)) < 0:
        raise ValueError(
            f"code {highest} lies outside its codebook of {book.shape[1]} levels; the file is "
            "damaged."
        )
    return np.take_along_axis(book, codes.astype(np.int64), 1)


_OPERATORS: dict[str, Callable[..., Any]] = {
    "Cast": _cast,
    "BitShift": _shift,
    "BitwiseAnd": _and,
    "BitwiseOr": _or,
    "Reshape": _reshape,
    "Slice": _slice,
    "Transpose": _transpose,
    "GatherElements": _gather,
}
UNFOLDING = frozenset(_OPERATORS)
"""Operators that `zaq_onnx.pack` writes."""
