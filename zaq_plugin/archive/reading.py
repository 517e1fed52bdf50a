"""An archive's parts, as the file's bytes."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from zaq_plugin.archive.curves import LEAST, joined_numbers, part_count, shape_of, tables
from zaq_plugin.archive.layout import Archive, Pieces, Record, expand, inflate, numbers, records
from zaq_plugin.archive.readers import Plane, joined

_ITEM = 4
"""Bytes of a number in a table of exceptions."""


def file_of(data: bytes, largest: int) -> bytes:
    """The file that was packed.

    Args:
        data: An archive.
        largest: Bytes that the file may have.

    Raises:
        ValueError: See `Archive`; or the file is not the one that was packed.
    """
    archive = Archive(data, largest)
    record, pieces = archive.record, Pieces(archive.size)
    try:
        rest = archive.take(record["rest"], expand, archive.size)
        _integers(record["int8"], archive, pieces)
        for group in records(record["curves"]):
            _curves(group, archive, pieces)
        for group in records(record["planes"]):
            _planes(group, archive, pieces)
    except (KeyError, TypeError) as error:
        raise ValueError(f"its description lacks something: {error}") from error
    archive.done()
    pieces.fill(rest)
    content = bytes(pieces.data)
    if hashlib.sha256(content).digest() != archive.digest:
        raise ValueError("the file made of it is not the one that was packed: its digest differs")
    return content


def _integers(group: Record, archive: Archive, pieces: Pieces) -> None:
    integers = archive.take(group["integers"], inflate, archive.size)
    place = 0
    for weight in records(group["weights"]):
        offset, count = numbers(weight, 2)
        pieces.put(offset, integers[place : place + count])
        place += count
    _all_used(place, integers)


def _curves(group: Record, archive: Archive, pieces: Pieces) -> None:
    shape = shape_of(group["shape"])
    (channels,) = numbers([group["channels"]], 1)
    if channels * LEAST > archive.size:
        raise ValueError("its description has more channels than weights")
    parts = [archive.take(sizes, inflate, channels) for sizes in records(group["numbers"])]
    if len(parts) != part_count(shape) or any(len(part) != channels for part in parts):
        raise ValueError("numbers of curves are missing")
    listed = archive.take(group["exceptions"], expand, 3 * _ITEM * channels * 2**shape.width)
    if len(listed) % (3 * _ITEM):
        raise ValueError("a level is listed by half")
    exceptions = np.frombuffer(listed, np.dtype("<i4")).reshape(3, -1).astype(np.int32)
    levels = tables(joined_numbers(parts, shape), exceptions, shape)
    codes = archive.take(group["codes"], inflate, archive.size)
    place = used = 0
    for weight in records(group["weights"]):
        offset, outer, rows, inner = numbers(weight, 4)
        count = outer * inner
        used += rows
        if count < LEAST or used > channels or place + rows * count > len(codes):
            raise ValueError("a weight has more channels or codes than there are")
        content = b"".join(
            codes[at : at + count].translate(next(levels))
            for at in range(place, place + rows * count, count)
        )
        place += rows * count
        if outer > 1:
            whole = np.frombuffer(content, np.int8).reshape(rows, outer, inner)
            content = whole.transpose(1, 0, 2).tobytes()
        pieces.put(offset, content)
    _all_used(place, codes)


def _planes(group: Record, archive: Archive, pieces: Pieces) -> None:
    (width,) = numbers([group["width"]], 1)
    if not 0 < width < 8:
        raise ValueError(f"its description has codes of {width} bits")
    # A byte of the file holds part of eight codes at most.
    codes = archive.take(group["codes"], inflate, 8 * archive.size)
    place = 0
    for weight in records(group["weights"]):
        head, planes = _two(weight)
        count, pairs = numbers(head, 2)
        part = np.frombuffer(codes[place : place + count], np.uint8)
        if not count or part.size != count or pairs > 1 or count % (1 + pairs):
            raise ValueError("a weight has more codes than there are")
        values = joined(part, width * pairs)
        for one in records(planes):
            offset, bits, low, inner = numbers(one, 4)
            if bits not in (1, 2, 4, 8) or low > 15 or not 0 < inner <= count:
                raise ValueError("its description has codes in no known order")
            pieces.put(offset, Plane(bits, low, inner).bytes_of(values))
        place += count
    _all_used(place, codes)


def _two(entry: Any) -> list[Any]:
    if not isinstance(entry, list) or len(entry) != 2:
        raise ValueError("its description has no planes for a weight")
    return entry


def _all_used(place: int, codes: bytes) -> None:
    if place != len(codes):
        raise ValueError("there are more codes than weights")
