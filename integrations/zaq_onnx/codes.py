"""Integer weights as codes and codebooks: the arrays.

A code says which level of its channel's codebook a weight has. Codebooks are the few numbers of a
`Curve` where PWLQ made the weight, one row of levels for all channels where that suffices, or
levels for every channel. Codes are cut into planes: four bits in UINT4 (or two codes in a byte),
and what is beyond in planes of one or two bits.
"""

from __future__ import annotations

import math
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
