"""Weights as codes and codebooks: the arrays, and the standard operators that unfold them.

A code of k bits is cut into planes of 4, 2 and 1 bits. The plane of 4 bits is a UINT4 tensor, the
others are bytes, unpacked by shifts and masks. What follows gathers from the codebook.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto

from zaq_onnx.graph import Array, Graph, make

MAX_WIDTH = 7
_PLANES = (4, 2, 1)


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
    """(bits, position of the lowest bit) of the planes of a code."""
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
    channels, count = coded.codes.shape
    moved = (shape[axis], *(d for i, d in enumerate(shape) if i != axis)) if shape else ()
    parts = []
    for bits, low in planes_of(coded.width):
        values = (coded.codes >> low) & (2**bits - 1)
        part = made.plane(values, bits)
        parts.append(made.shifted(part, low))
    codes = parts[0]
    for other in parts[1:]:
        codes = made.node("BitwiseOr", [codes, other])
    codes = made.node("Cast", [codes], to=TensorProto.INT32)
    book = made.constant("book", coded.book)
    result = made.node("GatherElements", [book, codes], axis=1)
    if moved != (channels, count):
        result = made.node("Reshape", [result, made.shape(moved)])
    if axis != 0:
        perm = list(range(1, axis + 1)) + [0] + list(range(axis + 1, len(shape)))
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
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, tuple[Array, int | None]] = {}

    def node(self, kind: str, inputs: list[str], **attributes: object) -> str:
        """Add a node; the name of its output."""
        output = f"{self.name}.{len(self.nodes)}"
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

    def plane(self, values: Array, bits: int) -> str:
        """Values of ``bits`` bits as a uint8 tensor of their shape."""
        if bits == 4:
            name = self.constant("u4", values, TensorProto.UINT4)
            return self.node("Cast", [name], to=TensorProto.UINT8)
        packed = self.constant(f"u{bits}", pack_plane(values, bits))
        shifts = self.common(f"zaq.shifts.{bits}", (np.arange(8 // bits) * bits).astype(np.uint8))
        mask = self.common(f"zaq.mask.{bits}", np.array(2**bits - 1, np.uint8))
        spread = self.node("BitShift", [packed, shifts], direction="RIGHT")
        masked = self.node("BitwiseAnd", [spread, mask])
        if values.size % (8 // bits):
            masked = self.node("Reshape", [masked, self.shape((-1,))])
            start = self.common("zaq.start", np.zeros(1, np.int64))
            end = self.common(f"zaq.end.{values.size}", np.array([values.size], np.int64))
            masked = self.node("Slice", [masked, start, end])
        return self.node("Reshape", [masked, self.shape(values.shape)])

    def shifted(self, name: str, low: int) -> str:
        """A plane at its place within the code."""
        if not low:
            return name
        by = self.common(f"zaq.low.{low}", np.array(low, np.uint8))
        return self.node("BitShift", [name, by], direction="LEFT")

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
