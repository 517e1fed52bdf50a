"""A file's bytes and its weights, as the parts of an archive."""

from __future__ import annotations

import bisect
import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zaq_plugin.archive.curves import LEAST, shape_numbers, split_numbers
from zaq_plugin.archive.layout import Record, Writer, deflate, squeeze
from zaq_plugin.archive.readers import Codes, Weight
from zaq_plugin.pwlq.curves import Curve, Shape, codes_in, used_levels
from zaq_plugin.pwlq.fitting import fit

SMALLEST = 64
"""Bytes of what is looked for by its content."""

_CURVE_BYTES, _EXCEPTION_BYTES = 3.5, 4.0
"""What a channel's numbers and an exception take, compressed, about."""


class Finder:
    """Finds pieces in a file, each of which has a place of its own."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._spans: list[tuple[int, int]] = []

    def take(self, pieces: list[bytes]) -> list[int] | None:
        """Where pieces lie that are not taken yet; None, and nothing is taken, if one does not."""
        before, places = list(self._spans), []
        for piece in pieces:
            place = self._free(piece)
            if place is None:
                self._spans = before
                return None
            bisect.insort(self._spans, (place, place + len(piece)))
            places.append(place)
        return places

    def _free(self, piece: bytes) -> int | None:
        if len(piece) < SMALLEST:
            return None
        place = self.data.find(piece)
        while place >= 0:
            index = bisect.bisect_right(self._spans, (place, len(self.data)))
            before = self._spans[index - 1][1] if index else 0
            after = self._spans[index][0] if index < len(self._spans) else len(self.data)
            if before <= place and place + len(piece) <= after:
                return place
            place = self.data.find(piece, max(place + 1, before))
        return None

    def rest(self) -> bytes:
        """What was not taken."""
        ends = [0, *(end for _, end in self._spans)]
        begins = [*(begin for begin, _ in self._spans), len(self.data)]
        return b"".join(self.data[a:b] for a, b in zip(ends, begins, strict=True))


@dataclass
class _Curved:
    offset: int
    form: tuple[int, int, int]
    curve: Curve
    codes: NDArray[np.uint8]


def archive_of(data: bytes, weights: Iterable[Weight | Codes]) -> tuple[bytes, int, int]:
    """An archive of a file.

    Args:
        data: The file.
        weights: What its reader says.

    Returns:
        The archive, how many integers of the file are codes in it, and how many are bytes.
    """
    finder, writer = Finder(data), Writer()
    curved: dict[Shape, list[_Curved]] = defaultdict(list)
    plain: list[tuple[int, bytes]] = []
    dense: dict[int, list[tuple[Codes, list[int]]]] = defaultdict(list)
    for weight in weights:
        if isinstance(weight, Codes):
            places = finder.take([plane.bytes_of(weight.values) for plane in weight.planes])
            if places is not None:
                dense[weight.width].append((weight, places))
            continue
        piece = np.ascontiguousarray(weight.integers).tobytes()
        places = finder.take([piece])
        if places is None:
            continue
        encoded = _curved(weight, places[0])
        if encoded is None:
            plain.append((places[0], piece))
        else:
            curved[encoded.curve.shape].append(encoded)
    record: Record = {"rest": writer.add(finder.rest(), squeeze)}
    integers = b"".join(piece for _, piece in plain)
    record["int8"] = {
        "integers": writer.add(integers, deflate),
        "weights": [[offset, len(piece)] for offset, piece in plain],
    }
    record["curves"] = [_curves(shape, own, writer) for shape, own in curved.items()]
    record["planes"] = [_planes(width, own, writer) for width, own in dense.items()]
    coded = sum(w.codes.size for own in curved.values() for w in own)
    coded += sum(w.codes.size for own in dense.values() for w, _ in own)
    archive = writer.archive(record, len(data), hashlib.sha256(data).digest())
    return archive, coded, len(integers)


def _curved(weight: Weight, offset: int) -> _Curved | None:
    """The codes of a weight, if its levels are PWLQ's and codes take less than integers."""
    outer, channels, inner = weight.form
    if outer * inner < LEAST:
        return None
    rows = weight.integers.reshape(weight.form).transpose(1, 0, 2).reshape(channels, -1)
    curve = fit(used_levels(rows), outer * inner)
    if curve is None:
        return None
    codes = codes_in(rows, curve.book)
    extra = _CURVE_BYTES * channels + _EXCEPTION_BYTES * len(curve.exceptions)
    if _entropy(codes) + extra >= _entropy(rows.view(np.uint8)):
        return None
    return _Curved(offset, weight.form, curve, codes)


def _entropy(values: NDArray[np.uint8]) -> float:
    """Bytes."""
    counts = np.bincount(values.reshape(-1), minlength=256)
    share = counts[counts > 0] / values.size
    return float(-(share * np.log2(share)).sum() * values.size / 8)


def _curves(shape: Shape, own: list[_Curved], writer: Writer) -> Record:
    rows = np.cumsum([0, *(len(w.curve.book) for w in own)])
    nibbles = np.concatenate([w.curve.nibbles for w in own])
    exceptions = [
        (row + channel, code, w.curve.book[channel, code])
        for row, w in zip(rows, own, strict=False)
        for channel, code in w.curve.exceptions
    ]
    table = np.array(exceptions, np.dtype("<i4")).reshape(-1, 3)
    return {
        "shape": shape_numbers(shape),
        "channels": int(rows[-1]),
        "numbers": [writer.add(part, deflate) for part in split_numbers(nibbles)],
        "exceptions": writer.add(table.T.tobytes(), squeeze),
        "codes": writer.add(b"".join(w.codes.tobytes() for w in own), deflate),
        "weights": [[w.offset, *w.form] for w in own],
    }


def _planes(width: int, own: list[tuple[Codes, list[int]]], writer: Writer) -> Record:
    stacks = [
        [
            [w.codes.size, int(w.pairs)],
            [[at, p.bits, p.low, p.inner] for p, at in zip(w.planes, places, strict=True)],
        ]
        for w, places in own
    ]
    codes = b"".join(w.codes.tobytes() for w, _ in own)
    return {"width": width, "codes": writer.add(codes, deflate), "weights": stacks}
