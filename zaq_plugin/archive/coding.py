"""Bytes to fewer bytes and back, with the standard library; what comes back has a stated size.

Codes are nearly without structure beyond how often each occurs, and Huffman's code is within one
per cent of their entropy. What is not codes (graphs, scales, biases) goes through LZMA, whose
literals may depend on the place within four bytes.
"""

from __future__ import annotations

import lzma
import zlib
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
