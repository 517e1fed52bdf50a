"""`pack` and `unpack`: files and their archives."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path

from zaq_plugin.archive.layout import SIGNATURE
from zaq_plugin.archive.readers import find_reader
from zaq_plugin.archive.reading import file_of
from zaq_plugin.archive.writing import archive_of
from zaq_plugin.files import write_whole

Path_ = str | os.PathLike[str]
LARGEST = 2**31 - 1
SUFFIX = ".zaq"


@dataclass(frozen=True)
class Packed:
    """What an archive came to.

    Attributes:
        path: Of the archive.
        bytes: Of it.
        file_bytes: Of the file.
        zipped_bytes: Of the file in a zip archive (deflate).
        coded: Weights that are codes in the archive.
        integers: Weights that are not of PWLQ, or in too short channels: coded byte by byte.
    """

    path: str
    bytes: int
    file_bytes: int
    zipped_bytes: int
    coded: int
    integers: int

    def __str__(self) -> str:
        kilo = (n / 1000 for n in (self.file_bytes, self.zipped_bytes, self.bytes))
        file, zipped, packed = (f"{n:,.1f} kB" for n in kilo)
        return (
            f"{self.path}: {packed}, of a file of {file} ({zipped} zipped); {self.coded:,} weights "
            f"as PWLQ's codes, {self.integers:,} as bytes"
        )


def pack(source: Path_, target: Path_ | None = None) -> Packed:
    """Write the archive of a file for devices; it is unpacked in memory and compared first.

    Args:
        source: A `.onnx`, `.pte` or `.tflite` file with int8 weights, or a packed `.onnx` file.
        target: The archive to write; None puts `SUFFIX` behind the file's name.

    Raises:
        FileNotFoundError: No such file.
        ImportError: What reads the file is not installed.
        ValueError: The file is of no kind that can be packed, damaged, holds no int8 weights, or is
            an archive already.
    """
    name = os.fspath(source)
    data = Path(source).read_bytes()
    if data.startswith(SIGNATURE):
        raise ValueError(f"{name}: it is an archive already.")
    if len(data) > LARGEST:
        raise ValueError(f"{name}: {len(data):,} bytes; at most {LARGEST:,} can be packed.")
    reader = find_reader(source)
    path = _target(source, name + SUFFIX if target is None else target)
    archive, coded, integers = archive_of(data, reader(Path(source)))
    if not coded + integers:
        raise ValueError(
            f"{name}: it holds no int8 weights, nor codes of them. Quantize the model first; zip "
            "packs a float file as well."
        )
    if file_of(archive, LARGEST) != data:
        raise RuntimeError(f"{name} does not unpack to itself; please report this.")
    write_whole(path, archive)
    zipped = len(zlib.compress(data, 9))
    return Packed(os.fspath(path), len(archive), len(data), zipped, coded, integers)


def unpack(
    source: Path_,
    target: Path_ | None = None,
    *,
    largest: int = LARGEST,
    overwrite: bool = False,
) -> int:
    """Write the file that an archive holds, bit for bit; nothing is written if that fails.

    Args:
        source: The archive.
        target: The file to write; None takes the archive's name without `SUFFIX`, with the suffix
            of the file's kind if it has none then.
        largest: Bytes that the file may have: archives from elsewhere may be made to fill a disk.
        overwrite: Whether a file that is there, and holds something else, is replaced.

    Returns:
        Bytes of the file.

    Raises:
        FileNotFoundError: No such archive.
        FileExistsError: The file to write is there, and holds something else.
        ValueError: It is no archive, truncated, damaged, of another version, or holds too much.
    """
    return restore(source, target, largest=largest, overwrite=overwrite).stat().st_size


def restore(
    source: Path_,
    target: Path_ | None = None,
    *,
    largest: int = LARGEST,
    overwrite: bool = False,
) -> Path:
    """As `unpack`; returns the path of the file."""
    name = os.fspath(source)
    if target is None and not name.endswith(SUFFIX):
        raise ValueError(f"{name}: it does not end in {SUFFIX}; name the file to write.")
    data = Path(source).read_bytes()
    try:
        content = file_of(data, largest)
    except ValueError as error:
        raise ValueError(f"{name}: {error}.") from error
    if target is None:
        target = name.removesuffix(SUFFIX)
        target += "" if Path(target).suffix else kind_of(content)
    path = _target(source, target)
    if path.exists() and not overwrite and path.read_bytes() != content:
        raise FileExistsError(
            f"{path} is there already, and is not what {name} holds; name another file to write, "
            "or replace it with --force (overwrite=True)."
        )
    write_whole(path, content)
    return path


def kind_of(content: bytes) -> str:
    """The suffix of a file for devices, by how it begins; empty if that says nothing."""
    if content[4:8] == b"TFL3":
        return ".tflite"
    if content[4:6] == b"ET":  # the version follows
        return ".pte"
    return ".onnx" if content[:1] == b"\x08" else ""  # the first field of a ModelProto


def _target(source: Path_, target: Path_) -> Path:
    path = Path(target)
    if path.resolve() == Path(source).resolve():
        raise ValueError(f"{os.fspath(source)}: it would be overwritten; name another file.")
    return path
