"""What a kind of file says about its weights; who reads which kind.

A reader is a function from a path to the weights in that file. It need not say where they lie: they
are looked for by their bytes. An integration offers one by an entry point of the group `GROUP`,
whose name is the file's suffix without the dot.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

GROUP = "zaq.files"


@dataclass(frozen=True)
class Weight:
    """Integers that a file holds as bytes.

    Attributes:
        integers: int8, in the file's order.
        axis: Whose entries have codebooks of their own: the output channels.
    """

    integers: NDArray[np.int8]
    axis: int = 0

    @property
    def form(self) -> tuple[int, int, int]:
        """Sizes before the axis, of it, and behind it."""
        shape, axis = self.integers.shape, self.axis
        return int(np.prod(shape[:axis])), int(shape[axis]), int(np.prod(shape[axis + 1 :]))


@dataclass(frozen=True)
class Plane:
    """Some bits of all values, several values in a byte, as one constant of a file.

    Values, filled up with zeros, have the shape (outer, parts, inner); a byte holds one value of
    each part, the first in its lowest bits.

    Attributes:
        bits: How many: 1, 2, 4 or 8; a byte holds ``8 / bits`` values.
        low: The lowest of them within a value.
        inner: 1 for values that follow one another in a byte.
    """

    bits: int
    low: int
    inner: int = 1

    def bytes_of(self, values: NDArray[np.uint16]) -> bytes:
        """The constant."""
        parts = 8 // self.bits
        part = (values >> self.low & 2**self.bits - 1).astype(np.uint8)
        filled = np.pad(part, (0, -part.size % (parts * self.inner)))
        cut = filled.reshape(-1, parts, self.inner)
        data = cut[:, 0].copy()
        for place in range(1, parts):
            data |= cut[:, place] << np.uint8(place * self.bits)
        return data.tobytes()


@dataclass(frozen=True)
class Codes:
    """Dense codes, which a file holds in planes.

    Attributes:
        codes: uint8, flat.
        width: Bits of a code, up to 7.
        pairs: Whether planes are of two codes at a time, the first one lower.
        planes: They.
    """

    codes: NDArray[np.uint8]
    width: int
    pairs: bool
    planes: tuple[Plane, ...]

    @property
    def values(self) -> NDArray[np.uint16]:
        """What the planes are of."""
        return joined(self.codes, self.width if self.pairs else 0)


def joined(codes: NDArray[np.uint8], width: int) -> NDArray[np.uint16]:
    """Codes, or with a width pairs of them, as values of planes."""
    values: NDArray[np.uint16] = codes.astype(np.uint16)
    if not width:
        return values
    pairs: NDArray[np.uint16] = values[::2] | values[1::2] << np.uint16(width)
    return pairs


Reader = Callable[[Path], Iterable[Weight | Codes]]


def kinds() -> list[str]:
    """Suffixes of files that can be packed."""
    return sorted(f".{point.name}" for point in entry_points(group=GROUP))


def find_reader(path: str | os.PathLike[str]) -> Reader:
    """Who reads a file's weights; its tool is imported now.

    Raises:
        ValueError: Nobody reads files of this kind.
        ImportError: The tool is not installed, or too old or new; the text says what to do.
    """
    suffix = Path(path).suffix.lower()
    points = {f".{point.name}": point for point in entry_points(group=GROUP)}
    if suffix not in points:
        raise ValueError(
            f"{os.fspath(path)}: a file to be packed ends in {', '.join(sorted(points))}; got "
            f"{suffix or 'no suffix'}."
        )
    reader: Reader = points[suffix].load()
    return reader


def channel_axis(shape: tuple[int, ...], channels: int) -> int:
    """The first axis with so many entries, or the first of all: for readers that know no more."""
    return shape.index(channels) if channels in shape else 0
