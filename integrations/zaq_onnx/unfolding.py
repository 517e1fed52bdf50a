"""The standard operators that unfold codes to int8 weights, for all weights of a model at once.

Weights of one shape per channel lie in one stack of codes, which is unfolded as one and split.
Codes are gathered from a table of their codebooks, in long rows two at a time: a pair of codes is
one index into the table of all pairs of levels, which the graph makes. Runtimes fold exactly these
operators when they load a model; OpenVINO folds neither GatherElements nor BitwiseAnd, nor does it
scatter into bytes. What is not all runtimes' is left out of portable files: codes of four bits lie
two in a byte there, not in UINT4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import NodeProto, TensorProto

from zaq_onnx.codes import pack_plane, pairs_of, planes_of
from zaq_onnx.graph import Array, Graph, make
from zaq_onnx.items import Item
from zaq_plugin.archive.readers import Codes, Plane
from zaq_plugin.pwlq.curves import Shape

CODES = ("u1", "u2", "u4", "u8")
BOOKS = ("book", "curves", "where", "what")
"""Last words of the names of constants that hold codes and codebooks."""


def _shape_of_codes(
    codes: Array, cut: Sequence[int], whole: tuple[int, ...], pairs: bool
) -> tuple[int, ...]:
    """Shape of an index; where possible, rows of what a byte of the smallest plane holds.

    Reshaping costs a copy of every index. With a dimension of two for each halving, bytes of every
    plane are rows, and none needs it.

    Args:
        codes: (channels, codes or pairs of them).
        cut: Bits of planes whose bytes hold several values.
        whole: Shape of the weight, the channels first.
        pairs: Whether two codes at a time are an index.
    """
    twos = _twos(min(cut)) if cut else ()
    if twos and codes.shape[1] % 2 ** len(twos) == 0:
        return (len(codes), -1, *twos)
    return codes.shape if pairs else whole


def _twos(bits: int) -> tuple[int, ...]:
    """Shape of what a byte holds: a two for each halving."""
    return (2,) * ((8 // bits).bit_length() - 1)


def unfold(items: Sequence[Item], *, portable: bool = True) -> Unfolding:
    """Nodes and constants that make int8 weights of their codes.

    Args:
        items: The weights.
        portable: With types and operators that every runtime has, and not in the fewest bytes.
    """
    made = Unfolding(portable)
    kinds: dict[tuple[object, ...], list[Item]] = {}
    for item in items:
        kinds.setdefault(item.kind, []).append(item)
    for same in kinds.values():
        stacks: dict[tuple[object, ...], list[Item]] = {}
        for item in sorted(same, key=lambda item: not item.pairs):
            stacks.setdefault(item.stack, []).append(item)
        ordered = [item for stack in stacks.values() for item in stack]
        tables, row = made.tables(ordered), 0
        for stack in stacks.values():
            pairs = stack[0].pairs
            rows = _rows([item for item in ordered if item.pairs] if pairs else ordered)
            made.stack(stack, tables[pairs], row, rows)
            row += _rows(stack)
    return made


def _rows(items: Sequence[Item]) -> int:
    """How many codebooks these have."""
    return sum(len(item.coded.codes) for item in items)


class Unfolding:
    """Collects nodes and constants; see `unfold`."""

    def __init__(self, portable: bool = True) -> None:
        self.portable = portable
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, tuple[Array, int | None]] = {}
        self._made: dict[tuple[object, ...], str] = {}
        self._number = 0
        self.stacks: list[Codes] = []
        self._planes: list[Plane] = []

    def node(self, kind: str, inputs: list[str], *, output: str = "", **attributes: object) -> str:
        """The output of a node; the same node again is not made again. Names take room."""
        key = (kind, *inputs, repr(sorted(attributes.items())))
        if key in self._made and not output:
            return self._made[key]
        name = output or f"z{len(self.nodes)}"
        made = make(kind, inputs, name, **attributes)
        made.name = ""
        self.nodes.append(made)
        self._made[key] = name
        return name

    def constant(self, word: str, value: Array, kind: int | None = None) -> str:
        """A constant of its own."""
        self._number += 1
        name = f"z{self._number}.{word}"
        self.constants[name] = (value, kind)
        return name

    def common(self, value: Array | int | float | Sequence[int]) -> str:
        """A small constant, made once; integers are int64 in lists and int32 alone."""
        if not isinstance(value, np.ndarray):
            alone = np.int32 if isinstance(value, int) else np.float32
            kind = alone if isinstance(value, int | float) else np.int64
            value = np.array(value, kind)
        for name, (other, _) in self.constants.items():
            same = other.dtype == value.dtype and other.shape == value.shape
            if same and np.array_equal(other, value):
                return name
        return self.constant("k", value)

    def tables(self, items: Sequence[Item]) -> dict[bool, str]:
        """All codebooks of one kind, below each other; True: all pairs of the first ones' levels.

        Args:
            items: Of one kind, those that are unfolded in pairs first.
        """
        form, width = items[0].kind
        if isinstance(form, Shape):
            book = self._curves(items, form)
        else:
            book = self.constant("book", np.concatenate([item.coded.book for item in items]))
        assert isinstance(width, int)
        paired = [item for item in items if item.pairs]
        made = {}
        if len(paired) < len(items):
            made[False] = self.node("Reshape", [book, self.common([-1])])
        if paired and made:
            book = self._rows(book, 0, _rows(paired))
        if paired:
            made[True] = self._pairs(book, width)
        return made

    def _curves(self, items: Sequence[Item], form: Shape) -> str:
        curves = [item.coded.curve for item in items if item.coded.curve is not None]
        nibbles = self._digits(np.concatenate([curve.nibbles for curve in curves]))
        factors, start = form.numbers
        numbers = self.node("MatMul", [nibbles, self.common(factors)])
        numbers = self.node("Add", [numbers, self.common(start)])
        larger = self.common(127.0)
        if form.scaled:
            larger = self.node("MatMul", [nibbles, self.common(form.larger)])
        numbers = self.node("Min", [numbers, larger])
        levels = self.node("MatMul", [numbers, self.common(form.spread)])
        levels = self.node("Round", [levels])
        first = np.cumsum([0, *(len(curve.book) for curve in curves)])
        where, what = [], []
        for start_row, curve in zip(first, curves, strict=False):
            for channel, code in curve.exceptions:
                where.append((start_row + channel) * 2**form.width + code)
                what.append(curve.book[channel, code])
        if where:
            levels = self.node("Reshape", [levels, self.common([-1])])
            index = self.constant("where", np.array(where, np.int32))
            value = self.constant("what", np.array(what, np.int8))
            value = self.node("Cast", [value], to=TensorProto.FLOAT)
            levels = self.node("ScatterElements", [levels, index, value])
            levels = self.node("Reshape", [levels, self.common([-1, 2**form.width])])
        return self.node("Cast", [levels], to=TensorProto.INT8)

    def _digits(self, digits: Array) -> str:
        """(channels, `Shape.nibbles`) float: digits of four bits; one row more where it is odd."""
        if self.portable:
            even = np.pad(digits, ((0, len(digits) % 2), (0, 0)), mode="edge")
            made = self._halves("curves", even, 0)
        else:
            made = self.constant("curves", digits, TensorProto.UINT4)
        return self.node("Cast", [made], to=TensorProto.FLOAT)

    def _halves(self, word: str, values: Array, axis: int) -> str:
        """int32 values of four bits, of which a byte holds two: one of each half along an axis.

        Gathering from a table of all bytes takes ONNX Runtime several times as long.
        """
        low, high = np.split(values.astype(np.uint8), 2, axis)
        both = self.node("Cast", [self.constant(word, low | high << 4)], to=TensorProto.INT32)
        parts = [self.node(kind, [both, self.common(16)]) for kind in ("Mod", "Div")]
        return self.node("Concat", parts, axis=axis)

    def _rows(self, x: str, start: int, end: int) -> str:
        return self.node("Slice", [x, *(self.common([n]) for n in (start, end, 0))])

    def _pairs(self, book: str, width: int) -> str:
        """(channels * 4^width, 2): every pair of a channel's levels, ordered as in `pairs_of`.

        Selecting (Where) is no faster in ONNX Runtime, and several times slower in OpenVINO.
        """
        count = 2**width
        first = self.node("Reshape", [book, self.common([-1, 1, count, 1])])
        second = self.node("Reshape", [book, self.common([-1, count, 1, 1])])
        square = self.common([1, count, count, 1])
        both = [self.node("Expand", [x, square]) for x in (first, second)]
        joined = self.node("Concat", both, axis=3)
        return self.node("Reshape", [joined, self.common([-1, 2])])

    def stack(self, items: Sequence[Item], table: str, row: int, rows: int) -> None:
        """Unfold weights of one shape per channel.

        Args:
            items: They.
            table: Where their levels, or pairs of them, are.
            row: Their first codebook's place in it.
            rows: How many codebooks it has.
        """
        head, width = items[0], items[0].coded.width
        codes = np.concatenate([item.coded.codes for item in items])
        channels, pairs = len(codes), head.pairs
        alone = head.shared or len(items) == 1
        whole = (sum(item.shape[head.axis] for item in items), *head.tail)
        entries = 4**width if pairs else 2**width
        planes = pairs_of(codes, width) if pairs else planes_of(codes, width)
        cut = [bits for bits, _, _ in planes if bits < 4]
        shape = _shape_of_codes(planes[0][2], cut, whole, pairs)
        self._planes = []
        parts = [self._plane(v.reshape(shape), bits, low) for bits, low, v in planes]
        self.stacks.append(Codes(codes.reshape(-1), width, pairs, tuple(self._planes)))
        index = parts[0]
        for other in parts[1:]:
            index = self.node("Add", [index, other])
        offsets = self.node("Range", [self.common(n) for n in (0, rows * entries, entries)])
        offsets = self.node("Reshape", [offsets, self.common([-1, *[1] * (len(shape) - 1)])])
        if channels < rows:
            offsets = self._rows(offsets, row, row + channels)
        index = self.node("Add", [index, offsets])
        # The last node has the weight's name, or those of all weights.
        last = ["Gather"]
        if shape != whole:
            last.append("Reshape")
        if head.axis:
            last.append("Transpose")
        # OpenVINO moves a Transpose that comes last behind the weight's scale, into float.
        if head.axis or not alone:
            last.append("Split")
        value = index
        for kind in last:
            output = head.name if alone and kind == last[-1] else ""
            if kind == "Gather":
                value = self.node(kind, [table, value], output=output)
            elif kind == "Reshape":
                value = self.node(kind, [value, self.common(whole)], output=output)
            elif kind == "Transpose":
                perm = [*range(1, head.axis + 1), 0, *range(head.axis + 1, len(whole))]
                value = self.node(kind, [value], output=output, perm=perm)
            else:
                sizes = self.common([item.shape[head.axis] for item in items])
                axis = {"axis": head.axis}
                self.node(kind, [value, sizes], output=head.name, **axis)
                self.nodes[-1].output.extend(item.name for item in items[1:])

    def _plane(self, values: Array, bits: int, low: int) -> str:
        """Values of ``bits`` bits as int32, at their place within the index."""
        if bits == 4 and self.portable:
            return self._nibbles(values, low)
        self._planes.append(Plane(bits, low))
        if bits >= 4:
            kind = TensorProto.UINT4 if bits == 4 else None
            part = self.constant(f"u{bits}", values.astype(np.uint8), kind)
            return self.node("Cast", [part], to=TensorProto.INT32)
        twos = _twos(bits)
        packed = pack_plane(values, bits)
        rows = values.shape[-len(twos) :] == twos  # what a byte holds is a row
        packed = packed.reshape(values.shape[: -len(twos)]) if rows else packed
        part = self.node("Cast", [self.constant(f"u{bits}", packed)], to=TensorProto.INT32)
        part = self.node("Gather", [self._bits(bits, low), part])
        return part if rows else self._shaped(part, values, 8 // bits)

    def _nibbles(self, values: Array, low: int) -> str:
        """Values of four bits, the lowest of an index."""
        axes = [i for i, size in enumerate(values.shape) if size % 2 == 0]
        if axes:
            half = math.prod(values.shape[axes[0] :]) // 2
            self._planes.append(Plane(4, low, half))
            return self._halves("u4", values, axes[0])
        padded = np.pad(values.reshape(-1), (0, 1))
        self._planes.append(Plane(4, low, padded.size // 2))
        return self._shaped(self._halves("u4", padded, 0), values, 2)

    def _shaped(self, flat: str, values: Array, per: int) -> str:
        """What bytes of ``per`` values hold, in the shape of these values."""
        if values.size % per:
            flat = self._rows(self.node("Reshape", [flat, self.common([-1])]), 0, values.size)
        return self.node("Reshape", [flat, self.common(values.shape)])

    def _bits(self, bits: int, low: int) -> str:
        """(256, 2, ...) int32: what every byte holds, at its place within the index."""
        ends = [self.common(n) for n in (0, 256, 1)]
        twos = _twos(bits)
        every = self.node(
            "Reshape", [self.node("Range", ends), self.common([-1, *[1] * len(twos)])]
        )
        powers = (1 << bits * np.arange(8 // bits)).astype(np.int32)
        part = self.node("Div", [every, self.common(powers.reshape(twos))])
        part = self.node("Mod", [part, self.common(1 << bits)])
        return self.node("Mul", [part, self.common(1 << low)]) if low else part

    def apply(self, graph: Graph, names: Sequence[str]) -> None:
        """Put everything into a graph, in place of the constants of these names."""
        taken = {*graph.constants, *graph.inputs, *(n for node in graph.nodes for n in node.output)}
        made = {n for node in self.nodes for n in node.output} | set(self.constants)
        clash = sorted((made - set(names)) & taken)
        if clash:
            raise ValueError(f"the graph already has a tensor {clash[0]!r}; rename it.")
        for name in names:
            graph.drop_constant(name)
        for name, (value, kind) in self.constants.items():
            graph.add_constant(name, value, kind=kind)
        graph.nodes[:0] = self.nodes

    @property
    def size(self) -> int:
        """Bytes in the file: nodes, constants, and what names and types take."""
        total = sum(node.ByteSize() + 4 for node in self.nodes)
        for name, (value, kind) in self.constants.items():
            bits = 4 if kind == TensorProto.UINT4 else 8 * value.itemsize
            total += math.ceil(value.size * bits / 8) + len(name) + 16
        return total
