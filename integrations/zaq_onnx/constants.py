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

LONGEST = 1 << 24
"""Channels, and bytes' values, that are counted at most."""

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


class Evaluator:
    """Values of tensors that depend on constants only, each computed once.

    Args:
        graph: Whose tensors; it must not change meanwhile.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.producers = graph.producers()
        self._known: dict[str, Array] = {}
        self._constant: dict[str, bool] = {}

    def constant(self, name: str) -> bool:
        """Whether a tensor is made by unfolding operators alone (its ends are constants or not)."""
        if name not in self._constant:
            self._constant[name] = False  # a cycle is no constant
            node = self.producers.get(name)
            self._constant[name] = node is None or (
                node.op_type in UNFOLDING and all(self.constant(n) for n in node.input if n)
            )
        return self._constant[name]

    def __call__(self, name: str) -> Array:
        """The value of a tensor.

        Raises:
            ValueError: it depends on an input, an operator is none of those that `pack` writes, or
                a shape or an index is out of range.
        """
        value = self._known.get(name)
        if value is None:
            value = self.graph.array(name)
        if value is not None:
            return value
        node = self.producers.get(name)
        if node is None or node.op_type not in UNFOLDING:
            what = "the model's input" if node is None else f"operator {node.op_type}"
            raise ValueError(f"weight {name!r} depends on {what}, so it is no constant.")
        values = [self(n) for n in node.input if n]
        try:
            if node.op_type == "Split":
                self._known.update(zip(node.output, _split(node, *values), strict=True))
            else:
                if node.op_type == "Gather":
                    self._check_codes(node, *values)
                self._known[name] = _OPERATORS[node.op_type](node, *values)
        except ValueError as error:
            raise ValueError(f"weight {name!r} ({node.op_type}): {error}") from error
        except (TypeError, LookupError, OverflowError, MemoryError) as error:
            raise ValueError(f"weight {name!r} ({node.op_type}): damaged, {error}.") from error
        return self._known[name]

    def _check_codes(self, gather: NodeProto, table: Array, index: Array) -> None:
        """Every code must stay within its own codebook's part of the table."""
        books = self.producers.get(gather.input[0])
        sum_ = self.producers.get(gather.input[1])
        if books is None or sum_ is None:
            raise ValueError("its indices are not codes, or its table no codebooks; damaged.")
        if sum_.op_type == "Cast":  # what every byte holds
            if index.size and not 0 <= int(index.min()) <= int(index.max()) < len(table):
                raise ValueError(f"a byte lies outside its table of {len(table)}; damaged.")
            return
        shapes = self._books(books)
        if sum_.op_type != "Add" or shapes is None:
            raise ValueError("its indices are not codes and offsets.")
        codes, offsets = (self(n) for n in sum_.input)
        channels = len(offsets)
        if offsets.size != channels or codes.ndim != offsets.ndim:
            raise ValueError(f"codes of shape {codes.shape} for {channels} channels; damaged.")
        if channels not in (1, len(codes)):
            raise ValueError(f"codes of shape {codes.shape} for {channels} channels; damaged.")
        part, rest = divmod(len(table), shapes)
        first = int(offsets.reshape(-1)[0])
        expected = first + np.arange(channels, dtype=np.int64) * part
        if rest or first % max(1, part) or not np.array_equal(offsets.reshape(-1), expected):
            raise ValueError(
                f"a table of {len(table)} entries for {shapes} codebooks, of which {channels} from "
                f"entry {first} are read; damaged."
            )
        if first < 0 or first + channels * part > len(table):
            raise ValueError(f"codebooks beyond the table of {len(table)} entries; damaged.")
        lowest, highest = int(codes.min(initial=0)), int(codes.max(initial=0))
        if lowest < 0 or highest >= part:
            raise ValueError(
                f"code {highest if highest >= part else lowest} lies outside its codebook of "
                f"{part} entries; the file is damaged."
            )

    def _books(self, node: NodeProto) -> int | None:
        """How many codebooks a table was made of: its rows before it was made flat."""
        if node.op_type != "Reshape":
            return None
        rows = self(node.input[0])
        return len(rows) if rows.ndim > 1 and len(rows) else None


def _cast(node: NodeProto, x: Array) -> Array:
    dtype = helper.tensor_dtype_to_np_dtype(attribute(node, "to"))
    if x.dtype.kind == "f" and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if x.size and not limits.min <= float(x.min()) <= float(x.max()) <= limits.max:
            raise ValueError(f"a level does not fit {dtype}.")
    return x.astype(dtype)


def _shift(node: NodeProto, x: Array, by: Array) -> Array:
    _broadcast(x, by)
    left = attribute(node, "direction", b"LEFT") == b"LEFT"
    return (np.left_shift if left else np.right_shift)(x, by)


def _binary(operator: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    def call(_: NodeProto, x: Array, y: Array) -> Array:
        _broadcast(x, y)
        if x.dtype != y.dtype or x.dtype.kind not in "iuf":
            raise ValueError(f"operands of types {x.dtype} and {y.dtype}.")
        return operator(x, y)

    return call


def _modulo(x: Array, y: Array) -> Array:
    if not y.all():
        raise ValueError("a remainder of a division by 0.")
    return np.mod(x, y)


def _quotient(x: Array, y: Array) -> Array:
    if x.dtype.kind not in "iu" or x.min(initial=0) < 0 or y.min(initial=1) < 1:
        raise ValueError("a division of other than integers from 0 by integers from 1.")
    return np.floor_divide(x, y)


def _broadcast(x: Array, y: Array) -> None:
    if math.prod(np.broadcast_shapes(x.shape, y.shape)) > LIMIT:
        raise ValueError(f"shapes {x.shape} and {y.shape} are impossibly large together.")


def _product(_: NodeProto, x: Array, y: Array) -> Array:
    if x.ndim != 2 or y.ndim != 2 or {x.dtype, y.dtype} != {np.dtype(np.float32)}:
        raise ValueError(f"a product of {x.dtype} {x.shape} and {y.dtype} {y.shape}.")
    if len(x) * y.shape[1] > LIMIT:
        raise ValueError(f"shapes {x.shape} and {y.shape} are impossibly large together.")
    return x @ y


def _round(_: NodeProto, x: Array) -> Array:
    return np.rint(x)


def _scatter(_: NodeProto, x: Array, where: Array, what: Array) -> Array:
    if x.ndim != 1 or where.shape != what.shape or where.ndim != 1:
        raise ValueError(f"{what.shape} values for {where.shape} places of {x.shape}; damaged.")
    if where.size and not 0 <= int(where.min()) <= int(where.max()) < len(x):
        raise ValueError(f"a place lies outside the {len(x)} levels; damaged.")
    copied = x.copy()
    copied[where] = what
    return copied


def _split(node: NodeProto, x: Array, sizes: Array) -> list[Array]:
    axis = int(attribute(node, "axis", 0))
    counts = [int(size) for size in sizes.reshape(-1)]
    if not 0 <= axis < x.ndim or min(counts, default=-1) < 0 or sum(counts) != x.shape[axis]:
        raise ValueError(f"shape {x.shape} is not {counts} along axis {axis}; damaged.")
    if len(counts) != len(node.output):
        raise ValueError(f"{len(counts)} parts for {len(node.output)} weights; damaged.")
    return np.split(x, np.cumsum(counts)[:-1], axis)


def _reshape(_: NodeProto, x: Array, shape: Array) -> Array:
    return x.reshape([int(d) for d in shape])


def _slice(_: NodeProto, x: Array, start: Array, end: Array, axes: Array | None = None) -> Array:
    if axes is not None and axes.tolist() != [0]:
        raise ValueError("only axis 0 is known here.")
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
    target = tuple(int(d) for d in shape)
    if any(d < 0 for d in target):
        raise ValueError(f"the shape {target} is impossible.")
    full = np.broadcast_shapes(x.shape, target)
    if math.prod(full) > LIMIT:
        raise ValueError(f"the shape {full} is impossibly large.")
    return np.broadcast_to(x, full)


def _concat(node: NodeProto, *parts: Array) -> Array:
    return np.concatenate(parts, attribute(node, "axis"))


def _range(_: NodeProto, start: Array, limit: Array, delta: Array) -> Array:
    first, last, step = (int(v) for v in (start, limit, delta))
    if step <= 0 or not 0 <= (last - first) // step <= LONGEST:
        raise ValueError(f"the range from {first} to {last} by {step} is impossible.")
    return np.arange(first, last, step, dtype=start.dtype)


_OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": _binary(np.add),
    "BitShift": _shift,
    "Cast": _cast,
    "Concat": _concat,
    "Div": _binary(_quotient),
    "Expand": _expand,
    "Gather": _gather,
    "MatMul": _product,
    "Min": _binary(np.minimum),
    "Mod": _binary(_modulo),
    "Mul": _binary(np.multiply),
    "Range": _range,
    "Reshape": _reshape,
    "Round": _round,
    "ScatterElements": _scatter,
    "Slice": _slice,
    "Transpose": _transpose,
}
UNFOLDING = frozenset({*_OPERATORS, "Split"})
"""Operators that `zaq_onnx.pack` writes."""
