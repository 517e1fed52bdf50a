"""Archives that were damaged or made to harm: one clear error, little memory, nothing written."""

import contextlib
import json
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pwlq_integers import pwlq

from zaq_plugin import archive
from zaq_plugin.archive import Codes, Plane, Weight
from zaq_plugin.archive.layout import (
    FIRST,
    HEAD,
    SIGNATURE,
    VERSION,
    Archive,
    deflate,
    expand,
    squeeze,
)
from zaq_plugin.archive.reading import file_of
from zaq_plugin.archive.writing import archive_of

LARGEST = 2**24


def good() -> tuple[bytes, bytes]:
    """A file with parts of every kind, and its archive."""
    curved, plain = pwlq((8, 512)), np.arange(-60, 60, dtype=np.int8)
    codes = (np.arange(512) % 13).astype(np.uint8)
    dense = Codes(codes, 4, False, (Plane(4, 0, 1),))
    (nibbles,) = (p.bytes_of(dense.values) for p in dense.planes)
    data = b"head" + curved.tobytes() + b"rest" * 30 + plain.tobytes() + nibbles
    packed, _, _ = archive_of(data, [Weight(curved), Weight(plain), dense])
    return data, packed


DATA, PACKED = good()
BEGIN = FIRST.size + HEAD.size


def rebuilt(
    record: Any = None, size: int | None = None, parts: bytes | None = None, text: bytes = b""
) -> bytes:
    """The good archive with something else in it, its checksum right."""
    first, digest, packed_size, _ = HEAD.unpack_from(PACKED, FIRST.size)
    own = json.dumps(RECORD if record is None else record).encode()
    described = squeeze(text or own)
    sizes = len(described), len(text or own)
    head = HEAD.pack(first if size is None else size, digest, *sizes)
    body = head + described + (PACKED[BEGIN + packed_size :] if parts is None else parts)
    return FIRST.pack(SIGNATURE, VERSION, zlib.crc32(body)) + body


RECORD = Archive(PACKED, LARGEST).record


def test_the_helper_changes_nothing_by_itself() -> None:
    assert file_of(PACKED, LARGEST) == DATA
    assert file_of(rebuilt(), LARGEST) == DATA
    assert all(RECORD[name] for name in ("curves", "planes"))
    assert RECORD["int8"]["weights"]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "this is no archive of zaq-quantize pack, or it is truncated."),
        (
            b"PK\3\4 a zip archive of some length, which is none of ours at all",
            "this is no archive",
        ),
        (PACKED[:70], "it is truncated or damaged: its checksum differs."),
        (PACKED[:-1], "it is truncated or damaged: its checksum differs."),
        (PACKED + b"x", "it is truncated or damaged: its checksum differs."),
        (PACKED[:8] + b"\2" + PACKED[9:], "it is of version 2, and this zaq_plugin reads 1;"),
    ],
)
def test_one_clear_error_and_nothing_written(data: bytes, text: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pte.zaq"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=text) as raised:
        archive.unpack(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert list(tmp_path.iterdir()) == [path]


@settings(deadline=None, max_examples=300)
@given(st.integers(0, len(PACKED) - 1), st.integers(1, 255))
def test_any_byte_that_changes_is_seen(place: int, change: int) -> None:
    damaged = bytearray(PACKED)
    damaged[place] ^= change
    with pytest.raises(ValueError, match="truncated|damaged|version|no archive"):
        file_of(bytes(damaged), LARGEST)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, len(PACKED) - 1))
def test_any_cut_is_seen(end: int) -> None:
    with pytest.raises(ValueError, match="truncated"):
        file_of(PACKED[:end], LARGEST)


@settings(deadline=None, max_examples=300)
@given(st.integers(BEGIN, len(PACKED) - 1), st.integers(1, 255))
def test_whoever_mends_the_checksum_gets_no_other_file(place: int, change: int) -> None:
    damaged = bytearray(PACKED)
    damaged[place] ^= change
    damaged[9:13] = zlib.crc32(damaged[FIRST.size :]).to_bytes(4, "little")
    with contextlib.suppress(ValueError):
        assert file_of(bytes(damaged), LARGEST) == DATA


def places(record: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a description has something that can be replaced."""
    inner = record.items() if isinstance(record, dict) else enumerate(record)
    paths = []
    for key, value in inner:
        paths.append((*path, key))
        if isinstance(value, dict | list):
            paths += places(value, (*path, key))
    return paths


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 2**70),
    st.sampled_from([0, 1, 8, len(DATA), 2**31, 2**40 - 1]),
    st.floats(),
    st.text(max_size=3),
    st.just([]),
    st.just({}),
    st.lists(st.integers(0, 600), max_size=4),
)


@settings(deadline=None, max_examples=500)
@given(st.sampled_from(places(RECORD)), VALUES)
def test_a_description_that_lies_is_an_error(path: tuple[Any, ...], value: Any) -> None:
    record = json.loads(json.dumps(RECORD))
    holder = record
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    changed = rebuilt(record)
    tracemalloc.start()
    try:
        message = ""
        assert file_of(changed, LARGEST) == DATA
    except ValueError as error:
        message = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert "\n" not in message
    assert peak < 2**23  # of which LZMA's dictionary takes half


@pytest.mark.parametrize(
    "text", [b"[]", b"3", b"{", b"[" * 100_000, b"\xff\xfe", b'{"rest": [1, 2]}', b"{}"]
)
def test_a_description_that_is_none(text: bytes) -> None:
    with pytest.raises(ValueError, match="description|part|larger|too much"):
        file_of(rebuilt(text=text), LARGEST)


def peak_of(call: Callable[[], object], text: str) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=text):
            call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [2**63, 2**31, len(PACKED) * 1000 + 10_000])
def test_a_file_that_is_said_to_be_huge(size: int) -> None:
    changed = rebuilt(size=size)
    assert peak_of(lambda: file_of(changed, 2**62), "says that it holds a file of") < 2**16


def test_a_file_larger_than_the_user_allows() -> None:
    with pytest.raises(ValueError, match=r"which is too much for an archive of .*, and 100\)"):
        file_of(PACKED, 100)


@pytest.mark.parametrize("stated", [len(DATA), 10**7 * 4])
def test_a_part_that_would_grow_to_forty_megabytes(stated: int) -> None:
    bomb = deflate(bytes(10**7 * 4))
    record = json.loads(json.dumps(RECORD))
    record["rest"] = [len(squeeze(b"")), 0]
    record["int8"]["integers"] = [len(bomb), stated]
    changed = rebuilt(record, parts=squeeze(b"") + bomb)
    assert peak_of(lambda: file_of(changed, LARGEST), "part") < 2**23


def test_lzma_that_would_grow() -> None:
    bomb = squeeze(bytes(10**7 * 4))
    assert peak_of(lambda: expand(bomb, 500), "should hold 500 bytes") < 2**23
