"""The bytes of an archive: a head, a description in JSON, parts one after the other.

Head: signature, version, CRC-32 of all that follows, then size and SHA-256 of the file that was
packed, and the description's bytes, compressed and not. The description gives each part as
``[compressed, plain]`` bytes, in order. Nothing of it is believed: what it says is checked against
what is there before memory is taken for it.
"""

from __future__ import annotations

import json
import lzma
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_STRATEGIES = (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY)
_FILTERS: list[dict[str, Any]] = [
    {"id": lzma.FILTER_LZMA1, "preset": 9, "dict_size": 2**22, "lc": 0, "lp": 2, "pb": 2}
]
_BITS, _MEMORY = -15, 9


def deflate(data: bytes) -> bytes:
    """For codes."""
    candidates = []
    for strategy in _STRATEGIES:
        coder = zlib.compressobj(9, zlib.DEFLATED, _BITS, _MEMORY, strategy)
        candidates.append(coder.compress(data) + coder.flush())
    return min(candidates, key=len)


def inflate(data: bytes, size: int) -> bytes:
    """Undo `deflate`; never more than ``size`` bytes are made.

    Raises:
        ValueError: It is damaged, or of another size.
    """
    decoder = zlib.decompressobj(_BITS)
    try:
        content = decoder.decompress(data, size + 1)
    except zlib.error as error:
        raise ValueError("codes cannot be decoded") from error
    return _checked(content, size, decoder.eof and not decoder.unused_data)


def squeeze(data: bytes) -> bytes:
    """For everything else."""
    return lzma.compress(data, lzma.FORMAT_RAW, filters=_FILTERS)


def expand(data: bytes, size: int) -> bytes:
    """Undo `squeeze`; never more than ``size`` bytes are made.

    Raises:
        ValueError: It is damaged, or of another size.
    """
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS)
    try:
        content = decoder.decompress(data, size + 1)
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError("bytes cannot be decoded") from error
    return _checked(content, size, decoder.eof and not decoder.unused_data)


def _checked(content: bytes, size: int, ended: bool) -> bytes:
    if len(content) != size or not ended:
        raise ValueError(f"a part that should hold {size} bytes does not")
    return content


SIGNATURE, VERSION = b"\x89ZAQ\r\n\x1a\n", 1
FIRST = struct.Struct("<8sBI")
HEAD = struct.Struct("<Q32sII")
RATIO = 1000
"""A file is at most so many times as large as its archive: more is made by nobody but to harm."""

Record = dict[str, Any]


@dataclass
class Writer:
    """Collects parts."""

    parts: list[bytes] = field(default_factory=list)

    def add(self, data: bytes, code: Callable[[bytes], bytes]) -> list[int]:
        """How the description gives this part."""
        self.parts.append(code(data))
        return [len(self.parts[-1]), len(data)]

    def archive(self, record: Record, size: int, digest: bytes) -> bytes:
        """All bytes.

        Args:
            record: The description.
            size: Of the file.
            digest: Its SHA-256.
        """
        text = json.dumps(record, separators=(",", ":")).encode()
        description = squeeze(text)
        body = (
            HEAD.pack(size, digest, len(description), len(text))
            + description
            + b"".join(self.parts)
        )
        return FIRST.pack(SIGNATURE, VERSION, zlib.crc32(body)) + body


class Archive:
    """An archive that was looked at, and whose parts are still to be read, in order.

    Args:
        data: All bytes.
        largest: Bytes that the file may have.

    Attributes:
        size: Of the file.
        digest: Its SHA-256.
        record: The description.

    Raises:
        ValueError: It is no archive, truncated, damaged, of another version, or too large.
    """

    def __init__(self, data: bytes, largest: int) -> None:
        if len(data) < FIRST.size + HEAD.size or data[:8] != SIGNATURE:
            raise ValueError("this is no archive of zaq-quantize pack, or it is truncated")
        _, version, crc = FIRST.unpack_from(data)
        if version != VERSION:
            raise ValueError(
                f"it is of version {version}, and this zaq_plugin reads {VERSION}; install another"
            )
        if zlib.crc32(memoryview(data)[FIRST.size :]) != crc:
            raise ValueError("it is truncated or damaged: its checksum differs")
        self.size, self.digest, packed, text = HEAD.unpack_from(data, FIRST.size)
        if self.size > min(largest, RATIO * len(data)) or text > RATIO * len(data):
            raise ValueError(
                f"it says that it holds a file of {self.size:,} bytes, which is too much for an "
                f"archive of {len(data):,} (at most {RATIO} times that, and {largest:,})"
            )
        self._data, self._place = data, FIRST.size + HEAD.size
        self.record = self._description(self.take([packed, text], expand, text))

    def _description(self, text: bytes) -> Record:
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError("its description cannot be read") from error
        if not isinstance(record, dict):
            raise ValueError("its description is none")
        return record

    def take(self, sizes: Any, decode: Callable[[bytes, int], bytes], limit: int) -> bytes:
        """The next part.

        Args:
            sizes: As the description gives it.
            decode: Its coder's inverse.
            limit: Bytes that it may have.

        Raises:
            ValueError: It is not there, damaged, or larger.
        """
        stored, size = numbers(sizes, 2)
        if size > limit or self._place + stored > len(self._data):
            raise ValueError("a part is larger than it can be")
        part = self._data[self._place : self._place + stored]
        self._place += stored
        return decode(part, size)

    def done(self) -> None:
        """Raise ValueError if something is left."""
        if self._place != len(self._data):
            raise ValueError("it holds more than it describes")


def numbers(entry: Any, count: int) -> list[int]:
    """A list of so many whole numbers from 0 on.

    Raises:
        ValueError: It is something else.
    """
    if (
        not isinstance(entry, list)
        or len(entry) != count
        or not all(type(n) is int and 0 <= n < 2**40 for n in entry)
    ):
        raise ValueError(f"its description has {str(entry)[:40]!r} where {count} numbers belong")
    return entry


def records(entry: Any) -> list[Any]:
    """A list.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(entry, list):
        raise ValueError(f"its description has {str(entry)[:40]!r} where a list belongs")
    return entry


class Pieces:
    """A file that is being made of pieces."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self._spans: list[tuple[int, int]] = []

    def put(self, offset: int, piece: bytes) -> None:
        """Put a piece in its place.

        Raises:
            ValueError: It does not fit there.
        """
        if not piece or offset + len(piece) > len(self.data):
            raise ValueError("a weight does not lie in the file")
        self.data[offset : offset + len(piece)] = piece
        self._spans.append((offset, offset + len(piece)))

    def fill(self, rest: bytes) -> None:
        """Put what is left between the pieces.

        Raises:
            ValueError: Pieces lie on one another, or the rest has another size.
        """
        place, taken = 0, 0
        for begin, end in [*sorted(self._spans), (len(self.data), len(self.data))]:
            gap = begin - place
            if gap < 0 or taken + gap > len(rest):
                raise ValueError("weights lie on one another, or bytes between them are missing")
            self.data[place:begin] = rest[taken : taken + gap]
            place, taken = end, taken + gap
        if taken != len(rest):
            raise ValueError("there are more bytes between weights than room")
