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

_WIDTHS: dict[int, int] = {
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.INT2: 2,
    TensorProto.UINT2: 2,
}


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
        if node.op_type == "Gather":
            _check_codes(graph, node, producers, len(values[0]))
        return _OPERATORS[node.op_type](node, *values)
    except ValueError as error:
        raise ValueError(f"weight {name!r} ({node.op_type}): {error}") from error
    except (TypeError, IndexError, OverflowError, MemoryError) as error:
        raise ValueError(f"weight {name!r} ({node.op_type}): damaged, {error}.") from error


def _check_codes(
    graph: Graph, gather: NodeProto, producers: dict[str, NodeProto], entries: int
) -> None:
    """Every code must stay within its own channel's part of the table."""
    index = producers.get(gather.input[1])
    if index is None or index.op_type != "Add" or gather.input[0] in graph.constants:
        raise ValueError("its indices are not codes and offsets.")
    codes, offsets = (evaluate(graph, n, producers) for n in index.input)
    channels = len(offsets)
    if offsets.shape != (channels, 1) or codes.ndim != 2 or len(codes) != channels:
        raise ValueError(f"codes of shape {codes.shape} for {channels} channels; damaged.")
    part = entries // channels
    if entries % channels or not np.array_equal(offsets[:, 0], np.arange(channels) * part):
        raise ValueError(f"a table of {entries} entries for {channels} channels; damaged.")
    lowest, highest = int(codes.min(initial=0)), int(codes.max(initial=0))
    if lowest < 0 or highest >= part:
        raise ValueError(
            f"code {highest if highest >= part else lowest} lies outside its codebook of {part} "
            "entries; the file is damaged."
        )


def _cast(node: NodeProto, x: Array) -> Array:
    return x.astype(helper.tensor_dtype_to_np_dtype(attribute(node, "to")))


def _shift(node: NodeProto, x: Array, by: Array) -> Array:
    _broadcast(x, by)
    left = attribute(node, "direction", b"LEFT") == b"LEFT"
    return (np.left_shift if left else np.right_shift)(x, by)


def _binary(operator: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    def call(_: NodeProto, x: Array, y: Array) -> Array:
        _broadcast(x, y)
        if x.dtype != y.dtype or x.dtype.kind not in "iu":
            raise ValueError(f"operands of types {x.dtype} and {y.dtype}.")
        return operator(x, y)

    return call


def _modulo(x: Array, y: Array) -> Array:
    if not y.all():
        raise ValueError("a remainder of a division by 0.")
    return np.mod(x, y)


def _broadcast(x: Array, y: Array) -> None:
    if math.prod(np.broadcast_shapes(x.shape, y.shape)) > LIMIT:
        raise ValueError(f"shapes {x.shape} and {y.shape} are impossibly large together.")


def _reshape(_: NodeProto, x: Array, shape: Array) -> Array:
    return x.reshape([int(d) for d in shape])


def _slice(_: NodeProto, x: Array, start: Array, end: Array) -> Array:
    return x[int(start[0]) : int(end[0])]


def _transpose(node: NodeProto, x: Array) -> Array:
    return x.transpose(attribute(node, "perm"))


def _gather(node: NodeProto, table: Array, index: Array) -> Array:
    if attribute(node, "axis", 0) != 0:
        raise ValueError("only axis 0 is known here.")
    if index.size * math.prod(table.shape[1:]) > LIMIT:
        raise ValueError("its result is impossibly large.")
    return table[index.astype(np.int64)]


def _expand(_: NodeProto, x: Array, shape: Array) -> Array:
    wanted = tuple(int(d) for d in shape)
    if any(d < 0 for d in wanted) or math.prod(wanted) > LIMIT:
        raise ValueError(f"the shape {wanted} is impossible.")
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, wanted))


def _concat(node: NodeProto, *parts: Array) -> Array:
    return np.concatenate(parts, attribute(node, "axis"))


def _range(_: NodeProto, start: Array, limit: Array, delta: Array) -> Array:
    first, last, step = (int(v) for v in (start, limit, delta))
    if step <= 0 or not 0 <= (last - first) // step <= LIMIT:
        raise ValueError(f"the range from {first} to {last} by {step} is impossible.")
    return np.arange(first, last, step, dtype=start.dtype)


_OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": _binary(np.add),
    "BitShift": _shift,
    "Cast": _cast,
    "Concat": _concat,
    "Expand": _expand,
    "Gather": _gather,
    "Mod": _binary(_modulo),
    "Mul": _binary(np.multiply),
    "Range": _range,
    "Reshape": _reshape,
    "Slice": _slice,
    "Transpose": _transpose,
}
UNFOLDING = frozenset(_OPERATORS)
"""Operators that `zaq_onnx.pack` writes."""
