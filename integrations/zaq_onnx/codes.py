"""Integer weights as codes and codebooks, and those that are unfolded together: the arrays.

A code says which level of its channel's codebook a weight has. Codebooks are the few numbers of a
`Curve` where PWLQ made the weight, one row of levels for all channels where that suffices, or
levels for every channel. Codes are cut into planes: four bits in UINT4 (or two codes in a byte),
and what is beyond in planes of one or two bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zaq_onnx.graph import Array
from zaq_plugin.archive.readers import Plane
from zaq_plugin.pwlq.curves import Curve, codes_in, used_levels
from zaq_plugin.pwlq.fitting import fit

MAX_WIDTH = 7


@dataclass(frozen=True)
class Coded:
    """An integer weight as codes and codebooks.

    Attributes:
        codes: (channels, weights a channel) uint8; one channel if all share one codebook.
        book: (channels, 2^width) int8; what is not needed repeats a level.
        width: Bits of a code.
        curve: What makes the codebooks, if they are PWLQ's.
    """

    codes: Array
    book: Array
    width: int
    curve: Curve | None = None

    @property
    def bytes(self) -> float:
        """Of codes and codebooks in a file."""
        books = self.book.size if self.curve is None else self.curve.bytes
        return self.codes.size * self.width / 8 + books


def encode(rows: Array) -> Coded | None:
    """The smallest codes and codebooks of an integer weight; None if no code is below 8 bits.

    Args:
        rows: (channels, weights a channel) int8.
    """
    used = used_levels(rows)
    whole: Array = np.array([used.any(0)])
    width = _width(int(used.sum(1).max(initial=1)))
    candidates = []
    if _width(int(whole.sum())) <= min(width, MAX_WIDTH):
        shared = _listed(whole, width)
        candidates.append(Coded(codes_in(rows.reshape(1, -1), shared), shared, width))
    elif width <= MAX_WIDTH:
        listed = _listed(used, width)
        candidates.append(Coded(codes_in(rows, listed), listed, width))
        curve = fit(used, rows.shape[1])
        if curve is not None:
            codes = codes_in(rows, curve.book)
            candidates.append(Coded(codes, curve.book, curve.shape.width, curve))
    return min(candidates, key=lambda coded: coded.bytes, default=None)


def _width(levels: int) -> int:
    return max(1, math.ceil(math.log2(max(1, levels))))


def _listed(used: Array, width: int) -> Array:
    """(channels, 2^width) int8: the levels that each row uses, the last one repeated."""
    book = np.zeros((len(used), 2**width), np.int8)
    for row, marks in zip(book, used, strict=True):
        levels = np.flatnonzero(marks) - 128
        if len(levels):
            row[: len(levels)], row[len(levels) :] = levels, levels[-1]
    return book


def planes_of(codes: Array, width: int) -> list[tuple[int, int, Array]]:
    """Planes of codes of ``width`` bits: (bits, position of the lowest bit, values)."""
    planes, low = [], 0
    for bits in (4, 2, 1):
        if width & bits:
            planes.append((bits, low, (codes >> low) & (2**bits - 1)))
            low += bits
    return planes


def pack_plane(values: Array, bits: int) -> Array:
    """Values of 1, 2 or 4 bits, flat, as bytes: the first value in the lowest bits."""
    packed: Array = np.frombuffer(Plane(bits, 0).bytes_of(values.reshape(-1)), np.uint8)
    return packed


def pairs_of(codes: Array, width: int) -> list[tuple[int, int, Array]]:
    """Planes of pairs of codes of 4 or 5 bits: (bits, lowest bit, values).

    A pair is the number of 2 ``width`` bits whose lower half is the first code.
    """
    pairs = codes[:, ::2] | codes[:, 1::2].astype(np.uint16) << width
    planes = [(8, 0, (pairs & 255).astype(np.uint8))]
    if width > 4:
        planes.append((2, 8, (pairs >> 8).astype(np.uint8)))
    return planes


def pairs_pay(coded: Coded) -> bool:
    """Whether a table of all pairs of levels, gathered from, loads faster than single levels."""
    count = coded.codes.shape[1]
    return coded.width in (4, 5) and count % 2 == 0 and 2 * count >= 4**coded.width


# ---- Weights that are unfolded together ----------------------------------------------------------

_LARGE = 2**16
"""Weights of this size are unfolded one by one: splitting them costs more than nodes."""


@dataclass(frozen=True)
class Item:
    """A weight to be packed.

    Attributes:
        name: Of the tensor.
        coded: What is stored.
        shape: Of the weight.
        axis: Its channel axis.
    """

    name: str
    coded: Coded
    shape: tuple[int, ...]
    axis: int

    @property
    def shared(self) -> bool:
        """Whether all channels have one codebook."""
        return len(self.coded.codes) == 1

    @property
    def tail(self) -> tuple[int, ...]:
        """The shape of one channel."""
        return tuple(d for i, d in enumerate(self.shape) if i != self.axis)

    @property
    def kind(self) -> tuple[object, ...]:
        """Weights of one kind have their codebooks in one constant: their form, bits of a code."""
        curve = self.coded.curve
        form = curve.shape if curve is not None else "list"
        return form, self.coded.width

    @property
    def pairs(self) -> bool:
        """Whether two codes at a time are an index."""
        return pairs_pay(self.coded)

    @property
    def stack(self) -> tuple[object, ...]:
        """Weights of one stack are unfolded together."""
        alone = self.name if self.shared or math.prod(self.shape) >= _LARGE else ""
        return self.kind, self.pairs, self.tail, self.axis, alone


class Stack:
    """Weights of one shape per channel, which are unfolded together.

    Attributes:
        items: They.
        codes: (channels, codes a channel).
        width: Bits of a code.
        pairs: Whether two codes at a time are an index.
        planes: Bits, position of the lowest bit, and values of the parts of an index.
        shape: Of an index.
        whole: Of the weights together, the channels first.
        entries: Of a table for each codebook.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        head, width = items[0], items[0].coded.width
        codes = np.concatenate([item.coded.codes for item in items])
        self.items, self.codes, self.width, self.pairs = items, codes, width, head.pairs
        self.planes = pairs_of(codes, width) if head.pairs else planes_of(codes, width)
        self.entries = 4**width if head.pairs else 2**width
        self.whole = (sum(item.shape[head.axis] for item in items), *head.tail)
        cut = [bits for bits, _, _ in self.planes if bits < 4]
        values = self.planes[0][2]
        self.shape = values.reshape(_shape_of_codes(values, cut, self.whole, head.pairs)).shape
        self.rows = len(codes)

    def joins(self, largest: int) -> bool:
        """Whether codes are a whole number of bytes in every plane, and at most so many."""
        row = max(8 // bits for bits, _, _ in self.planes)
        return not self.pairs and self.codes.size % row == 0 and self.codes.size <= largest


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
    last = twos(min(cut)) if cut else ()
    if last and codes.shape[1] % 2 ** len(last) == 0:
        return (len(codes), -1, *last)
    return codes.shape if pairs else whole


def twos(bits: int) -> tuple[int, ...]:
    """Shape of what a byte holds: a two for each halving."""
    return (2,) * ((8 // bits).bit_length() - 1)
