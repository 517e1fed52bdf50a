"""The standard operators that unfold codes to int8 weights, for all weights of a model at once.

Weights of one shape per channel lie in one stack of codes, which is unfolded as one and split.
Codes are gathered from a table of their codebooks, in long rows two at a time: a pair of codes is
one index into the table of all pairs of levels, which the graph makes. Runtimes fold exactly these
operators when they load a model; OpenVINO folds neither GatherElements nor BitwiseAnd, nor does it
scatter into bytes. What is not all runtimes' is left out of portable files: codes of four bits lie
two in a byte there, not in UINT4.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from zaq_onnx.codes import Item, Stack, pack_plane, twos
from zaq_onnx.emitting import Nodes
from zaq_onnx.graph import Array
from zaq_plugin.archive.readers import Codes, Plane
from zaq_plugin.pwlq.curves import Shape

CODES = ("u1", "u2", "u4", "u8")
BOOKS = ("book", "curves", "where", "what")
"""Last words of the names of constants that hold codes and codebooks."""


_SMALL = 2**17
"""Values of four bits are looked up by the byte where there are fewer: nodes cost more."""


def unfold(items: Sequence[Item], *, portable: bool = True) -> Unfolding:
    """Nodes and constants that make int8 weights of their codes.

    Args:
        items: The weights.
        portable: With types and operators that every runtime has, and not in the fewest bytes.
    """
    unfolding = Unfolding(portable)
    kinds: dict[tuple[object, ...], list[Item]] = {}
    for item in items:
        kinds.setdefault(item.kind, []).append(item)
    for same in kinds.values():
        groups: dict[tuple[object, ...], list[Item]] = {}
        for item in same:
            groups.setdefault(item.stack, []).append(item)
        stacks = [Stack(items) for items in groups.values()]
        joined = [stack for stack in stacks if stack.joins(_JOINED)]
        indices = unfolding.join(joined) if len(joined) > 1 else {}
        stacks.sort(key=lambda stack: (not stack.pairs, len(stack.shape)))
        tables = unfolding.tables([item for stack in stacks for item in stack.items])
        offsets = unfolding.offsets(stacks)
        for stack, first in zip(stacks, offsets, strict=True):
            unfolding.stack(stack, tables[stack.pairs], first, indices.get(id(stack), ""))
    return unfolding


_JOINED = 2**17
"""Stacks of fewer codes have their planes in common constants, which saves nodes."""


def _rows(items: Sequence[Item]) -> int:
    """How many codebooks these have."""
    return sum(len(item.coded.codes) for item in items)


class Unfolding(Nodes):
    """Collects nodes and constants; see `unfold`."""

    def __init__(self, portable: bool = True) -> None:
        super().__init__()
        self.portable = portable
        self.stacks: list[Codes] = []
        self._planes: list[Plane] = []
        self._joined: dict[int, tuple[Plane, ...]] = {}

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
        tables = {}
        if len(paired) < len(items):
            tables[False] = self.node("Reshape", [book, self.common([-1])])
        if paired and tables:
            book = self.rows(book, 0, _rows(paired))
        if paired:
            tables[True] = self._pairs(book, width)
        return tables

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
            codes = self.halves("curves", even, 0)
        else:
            codes = self.constant("curves", digits, TensorProto.UINT4)
        return self.node("Cast", [codes], to=TensorProto.FLOAT)

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

    def offsets(self, stacks: Sequence[Stack]) -> list[str]:
        """For each stack where its codebooks begin in the table, as its indices are shaped.

        Args:
            stacks: Of one kind; those of pairs first, and of each those of one rank together.
        """
        offsets, row = [], 0
        for _, same in itertools.groupby(stacks, lambda stack: (stack.pairs, len(stack.shape))):
            some = list(same)
            entries, sizes = some[0].entries, [stack.rows for stack in some]
            # A table of pairs has those of pairs alone, which are the first.
            ends = [row * entries, (row + sum(sizes)) * entries, entries]
            whole = self.node("Range", [self.common(n) for n in ends])
            shape = [-1, *[1] * (len(some[0].shape) - 1)]
            whole = self.node("Reshape", [whole, self.common(shape)])
            offsets += self.split(whole, sizes) if len(sizes) > 1 else [whole]
            row += sum(sizes)
        return offsets

    def join(self, stacks: Sequence[Stack]) -> dict[int, str]:
        """Codes of several stacks, whose planes lie one behind another; by the stacks' identity.

        A stack is a whole number of rows, of which the smallest plane's bytes hold one each.
        """
        bits = [b for b, _, _ in stacks[0].planes]
        row = twos(min(bits))
        parts = []
        self._planes = []
        for i, (b, low, _) in enumerate(stacks[0].planes):
            values = np.concatenate([stack.planes[i][2].reshape(-1, *row) for stack in stacks])
            parts.append(self._plane(values, b, low))
        index = parts[0]
        for other in parts[1:]:
            index = self.node("Add", [index, other])
        counts = [stack.codes.size // math.prod(row) for stack in stacks]
        names = self.split(index, counts)
        reshaped = {}
        for stack, name in zip(stacks, names, strict=True):
            stack.shape = stack.whole
            self._joined[id(stack)] = tuple(self._planes)
            reshaped[id(stack)] = self.node("Reshape", [name, self.common(stack.whole)])
        return reshaped

    def stack(self, stack: Stack, table: str, offsets: str, index: str = "") -> None:
        """Unfold weights of one shape per channel.

        Args:
            stack: They.
            table: Where their levels, or pairs of them, are.
            offsets: Where in it their codebooks begin.
            index: Their codes, if those are unfolded already.
        """
        items, whole = stack.items, stack.whole
        head = items[0]
        alone = head.shared or len(items) == 1
        planes = self._joined.get(id(stack))
        if planes is None:
            index, planes = self._index(stack)
        shape = stack.shape
        self.stacks.append(Codes(stack.codes.reshape(-1), stack.width, stack.pairs, planes))
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

    def _index(self, stack: Stack) -> tuple[str, tuple[Plane, ...]]:
        self._planes = []
        parts = [self._plane(v.reshape(stack.shape), bits, low) for bits, low, v in stack.planes]
        index = parts[0]
        for other in parts[1:]:
            index = self.node("Add", [index, other])
        return index, tuple(self._planes)

    def _plane(self, values: Array, bits: int, low: int) -> str:
        """Values of ``bits`` bits as int32, at their place within the index."""
        cut = twos(bits)
        rows = bits <= 4 and values.shape[-len(cut) :] == cut  # what a byte holds is a row
        small = rows and values.size <= _SMALL
        if bits == 4 and self.portable and not small:
            return self._nibbles(values, low)
        self._planes.append(Plane(bits, low))
        if bits > 4 or (bits == 4 and not self.portable):
            kind = TensorProto.UINT4 if bits == 4 else None
            part = self.constant(f"u{bits}", values.astype(np.uint8), kind)
            return self.node("Cast", [part], to=TensorProto.INT32)
        packed = pack_plane(values, bits)
        packed = packed.reshape(values.shape[: -len(cut)]) if rows else packed
        part = self.node("Cast", [self.constant(f"u{bits}", packed)], to=TensorProto.INT32)
        part = self.node("Gather", [self._bits(bits, low), part])
        return part if rows else self._shaped(part, values, 8 // bits)

    def _nibbles(self, values: Array, low: int) -> str:
        """Values of four bits, the lowest of an index."""
        axes = [i for i, size in enumerate(values.shape) if size % 2 == 0]
        if axes:
            half = math.prod(values.shape[axes[0] :]) // 2
            self._planes.append(Plane(4, low, half))
            return self.halves("u4", values, axes[0])
        padded = np.pad(values.reshape(-1), (0, 1))
        self._planes.append(Plane(4, low, padded.size // 2))
        return self._shaped(self.halves("u4", padded, 0), values, 2)

    def _shaped(self, flat: str, values: Array, per: int) -> str:
        """What bytes of ``per`` values hold, in the shape of these values."""
        if values.size % per:
            flat = self.rows(self.node("Reshape", [flat, self.common([-1])]), 0, values.size)
        return self.node("Reshape", [flat, self.common(values.shape)])

    def _bits(self, bits: int, low: int) -> str:
        """(256, 2, ...) int32: what every byte holds, at its place within the index."""
        ends = [self.common(n) for n in (0, 256, 1)]
        cut = twos(bits)
        every = self.node("Reshape", [self.node("Range", ends), self.common([-1, *[1] * len(cut)])])
        powers = (1 << bits * np.arange(8 // bits)).astype(np.int32)
        part = self.node("Div", [every, self.common(powers.reshape(cut))])
        part = self.node("Mod", [part, self.common(1 << bits)])
        return self.node("Mul", [part, self.common(1 << low)]) if low else part
