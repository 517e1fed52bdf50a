"""Weights as codes and codebooks: the arrays, and the standard operators that unfold them.

Codes are gathered from the codebook, in long rows two at a time: a pair of codes is one index into
the table of all pairs of levels, which the graph builds from the codebook. That is three times as
fast to load. An index is cut into planes of 8, 4, 2 and 1 bits: bytes, UINT4, and bits in bytes,
unpacked by shifts and remainders. Runtimes fold exactly these operators when they load a model
(OpenVINO folds neither GatherElements nor BitwiseAnd).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto

from zaq_onnx.graph import Array, Graph, make

MAX_WIDTH = 7
_PLANES = (8, 4, 2, 1)
_PAIRS_FROM = 3
"""Weights a channel, as a multiple of the pairs of levels / 16, from which pairs are worthwhile."""


@dataclass(frozen=True)
class Coded:
    """An integer weight as codes and a codebook per channel.

    Attributes:
        codes: (channels, weights a channel) uint8.
        book: (channels, levels) int8, ascending; short rows repeat their last level.
        width: Bits of a code.
    """

    codes: Array
    book: Array
    width: int


def encode(rows: Array) -> Coded | None:
    """Codes and codebook of an integer weight, or None if a channel has over 128 levels.

    Args:
        rows: (channels, weights a channel) int8.
    """
    channels = rows.shape[0]
    used = np.zeros((channels, 256), bool)
    used[np.arange(channels)[:, None], rows.astype(np.int64) + 128] = True
    counts = used.sum(1)
    size = int(counts.max(initial=1))
    width = max(1, math.ceil(math.log2(size)))
    if width > MAX_WIDTH:
        return None
    rank = np.cumsum(used, 1) - 1
    codes = rank[np.arange(channels)[:, None], rows.astype(np.int64) + 128].astype(np.uint8)
    book = np.empty((channels, size), np.int8)
    for channel in range(channels):
        levels = np.flatnonzero(used[channel]) - 128
        book[channel, : len(levels)] = levels
        book[channel, len(levels) :] = levels[-1]
    return Coded(codes, book, width)


def planes_of(width: int) -> list[tuple[int, int]]:
    """(bits, position of the lowest bit) of the planes of an index of ``width`` bits."""
    found, low = [], 0
    for bits in _PLANES:
        if width >> int(math.log2(bits)) & 1:
            found.append((bits, low))
            low += bits
    return found


def pack_plane(values: Array, bits: int) -> Array:
    """Values of 1 or 2 bits, flat, as bytes: the first value in the lowest bits."""
    per = 8 // bits
    padded = np.pad(values.reshape(-1), (0, -values.size % per)).reshape(-1, per)
    shifts = (np.arange(per) * bits).astype(np.uint8)
    packed: Array = np.bitwise_or.reduce(padded.astype(np.uint8) << shifts, 1)
    return packed.reshape(-1, 1)


def pairs_pay(coded: Coded) -> bool:
    """Whether gathering pairs of levels is faster, at load, than single ones."""
    count, levels = coded.codes.shape[1], coded.book.shape[1]
    return count % 2 == 0 and 16 * count >= _PAIRS_FROM * levels**2


def unfolding(graph: Graph, name: str, coded: Coded, shape: tuple[int, ...], axis: int) -> Unfolded:
    """Nodes and constants that make the int8 weight ``name`` of its codes.

    Args:
        graph: Whose constants are shared, where equal ones exist.
        name: Of the result, and the beginning of all other names.
        coded: What is stored.
        shape: Of the weight.
        axis: Its channel axis.
    """
    made = Unfolded(graph, name)
    channels, levels = coded.book.shape
    indices, width, entries = coded.codes.astype(np.uint16), coded.width, levels
    table = made.constant("book", coded.book)
    if pairs_pay(coded):
        indices = indices[:, ::2] + indices[:, 1::2] * levels
        width, entries = max(1, math.ceil(math.log2(levels**2))), levels**2
        table = made.pairs(table, channels, levels)
    else:
        table = made.node("Reshape", [table, made.shape((-1,))])
    parts = [
        made.plane((indices >> low) & (2**bits - 1), bits, low) for bits, low in planes_of(width)
    ]
    index = parts[0]
    for other in [*parts[1:], made.offsets(channels, entries)]:
        index = made.node("Add", [index, other])
    result = made.node("Gather", [table, index], axis=0)
    moved = (shape[axis], *(d for i, d in enumerate(shape) if i != axis))
    if moved != indices.shape or entries != levels:
        result = made.node("Reshape", [result, made.shape(moved)])
    if axis != 0:
        perm = [*range(1, axis + 1), 0, *range(axis + 1, len(shape))]
        result = made.node("Transpose", [result], perm=perm)
    made.finish(result)
    return made


class Unfolded:
    """Collects the nodes and constants of one weight's unfolding.

    Args:
        graph: Where shared constants are looked up.
        name: Of the weight.
    """

    def __init__(self, graph: Graph, name: str) -> None:
        self.graph, self.name = graph, name
        used = sum(other.endswith(".book") for other in graph.constants)
        self.short = f"z{used}."  # in every node twice: names take room
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, tuple[Array, int | None]] = {}

    def node(self, kind: str, inputs: list[str], **attributes: object) -> str:
        """Add a node; the name of its output."""
        output = f"{self.short}{len(self.nodes)}"
        made = make(kind, inputs, output, **attributes)
        made.name = ""
        self.nodes.append(made)
        return output

    def constant(self, word: str, value: Array, kind: int | None = None) -> str:
        """Add a constant of this weight's own."""
        name = f"{self.name}.{word}"
        self.constants[name] = (value, kind)
        return name

    def common(self, name: str, value: Array) -> str:
        """Add a constant that weights share."""
        if name not in self.graph.constants:
            self.constants[name] = (value, None)
        return name

    def shape(self, shape: tuple[int, ...]) -> str:
        """A shared constant that holds a shape."""
        text = "x".join(map(str, shape))
        return self.common(f"zaq.shape.{text}", np.array(shape, np.int64))

    def pairs(self, book: str, channels: int, levels: int) -> str:
        """(channels * levels^2, 2): every pair of a channel's levels, the first index fastest."""
        first = self.node("Reshape", [book, self.shape((channels, 1, levels, 1))])
        second = self.node("Reshape", [book, self.shape((channels, levels, 1, 1))])
        square = self.shape((channels, levels, levels, 1))
        both = [self.node("Expand", [x, square]) for x in (first, second)]
        joined = self.node("Concat", both, axis=3)
        return self.node("Reshape", [joined, self.shape((-1, 2))])

    def plane(self, values: Array, bits: int, low: int) -> str:
        """Values of ``bits`` bits as int32, at their place within the index."""
        if bits >= 4:
            kind = TensorProto.UINT4 if bits == 4 else None
            part = self.constant(f"u{bits}", values.astype(np.uint8), kind)
        else:
            part = self._bits(values, bits)
        part = self.node("Cast", [part], to=TensorProto.INT32)
        if not low:
            return part
        return self.node(
            "Mul", [part, self.common(f"zaq.{1 << low}", np.array(1 << low, np.int32))]
        )

    def _bits(self, values: Array, bits: int) -> str:
        packed = self.constant(f"u{bits}", pack_plane(values, bits))
        shifts = (np.arange(8 // bits) * bits).astype(np.uint32)
        part = self.node("Cast", [packed], to=TensorProto.UINT32)
        part = self.node(
            "BitShift", [part, self.common(f"zaq.shifts.{bits}", shifts)], direction="RIGHT"
        )
        part = self.node(
            "Mod", [part, self.common(f"zaq.mod.{bits}", np.array(1 << bits, np.uint32))]
        )
        if values.size % (8 // bits):
            part = self.node("Reshape", [part, self.shape((-1,))])
            start = self.common("zaq.start", np.zeros(1, np.int64))
            end = self.common(f"zaq.end.{values.size}", np.array([values.size], np.int64))
            part = self.node("Slice", [part, start, end])
        return self.node("Reshape", [part, self.shape(values.shape)])

    def offsets(self, channels: int, entries: int) -> str:
        """(channels, 1): where each channel's part of the table begins."""
        ends = [0, channels * entries, entries]
        names = [self.common(f"zaq.{n}", np.array(n, np.int32)) for n in ends]
        steps = self.node("Range", names)
        return self.node("Reshape", [steps, self.shape((channels, 1))])

    def finish(self, result: str) -> None:
        """Give the last node's output the weight's own name."""
        assert self.nodes[-1].output[0] == result
        self.nodes[-1].output[0] = self.name

    def apply(self, before: NodeProto) -> None:
        """Put everything into the graph, in place of the constant."""
        self.graph.drop_constant(self.name)
        for name, (value, kind) in self.constants.items():
            made = self.graph.add_constant(name, value, kind=kind)
            if made != name:
                raise ValueError(f"the graph already has a tensor {name!r}; rename it.")
        self.graph.insert_before(before, *self.nodes)

    @property
    def size(self) -> int:
        """Bytes in the file: nodes, constants, and what names and types take."""
        total = sum(node.ByteSize() + 4 for node in self.nodes)
        for name, (value, kind) in self.constants.items():
            bits = 4 if kind == TensorProto.UINT4 else 8 * value.itemsize
            total += (value.size * bits + 7) // 8 + len(name) + 16
        return total
