"""Files come back bit for bit, and their archives are as small as the codes' entropy lets them."""

import hashlib
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pwlq_integers import pwlq

from zaq_plugin import PWLQSpec, archive, quantize
from zaq_plugin.archive import Codes, Plane, Weight
from zaq_plugin.archive.reading import file_of
from zaq_plugin.archive.writing import archive_of
from zaq_plugin.pwlq import entropy_bits

LARGEST = 2**24


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with two weights, whose kind is known to nobody else."""
    weights = [Weight(pwlq((32, 16, 3, 3))), Weight(pwlq((10, 64), seed=1))]
    path = tmp_path / "net.bin"
    path.write_bytes(b"head" * 9 + b"between".join(w.integers.tobytes() for w in weights) + b"end")
    monkeypatch.setattr("zaq_plugin.archive.files.find_reader", lambda _: lambda _: weights)
    return path


def test_there_and_back(file: Path) -> None:
    packed = archive.pack(file)
    assert packed.path == f"{file}.zaq"
    assert (packed.coded, packed.integers) == (32 * 144 + 640, 0)
    assert packed.bytes == Path(packed.path).stat().st_size
    assert packed.file_bytes == file.stat().st_size
    assert packed.zipped_bytes == len(zlib.compress(file.read_bytes(), 9))
    assert "5,248 weights as PWLQ's codes, 0 as bytes" in str(packed)
    data = file.read_bytes()
    file.unlink()
    assert archive.unpack(packed.path) == len(data)
    assert file.read_bytes() == data
    other = file.with_name("other")
    archive.unpack(packed.path, other)
    assert other.read_bytes() == data
    assert sorted(p.name for p in file.parent.iterdir()) == ["net.bin", "net.bin.zaq", "other"]


def test_a_file_that_holds_something_else_is_not_overwritten(file: Path) -> None:
    packed, data = archive.pack(file).path, file.read_bytes()
    assert archive.unpack(packed) == len(data)  # it is the same file
    file.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"net.bin is there already, and is not what"):
        archive.unpack(packed)
    assert file.read_bytes() == b"mine"
    archive.unpack(packed, overwrite=True)
    assert file.read_bytes() == data


@pytest.mark.parametrize(
    ("begin", "ending"),
    [
        (b"\x1c\0\0\0TFL3", ".tflite"),
        (b"\x30\0\0\0ET12", ".pte"),
        (b"\x08\x09\x12\x07", ".onnx"),
        (b"anything", ""),
    ],
)
def test_a_name_without_a_suffix_gets_that_of_the_files_kind(
    file: Path, begin: bytes, ending: str
) -> None:
    data = begin + file.read_bytes()
    file.write_bytes(data)
    packed = archive.pack(file, file.with_name("small.zaq"))
    archive.unpack(packed.path)
    assert file.with_name(f"small{ending}").read_bytes() == data


def test_the_same_file_gives_the_same_archive(file: Path) -> None:
    first = Path(archive.pack(file).path).read_bytes()
    assert Path(archive.pack(file, file.with_name("again")).path).read_bytes() == first


@pytest.mark.parametrize("bits", [3, 4])
def test_a_weight_takes_its_codes_entropy_and_its_curves(bits: int) -> None:
    """The entropy is of PWLQ's own codes, of which the archive never heard."""
    values = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    tensor = quantize(values, PWLQSpec(bits))
    integers = tensor.integer_weight().numpy()
    data = integers.tobytes()
    packed, coded, _ = archive_of(data, [Weight(integers)])
    assert coded == integers.size
    assert file_of(packed, LARGEST) == data
    order = np.searchsorted(np.unique(integers), integers)  # what one table for all could do
    signs = torch.from_numpy(np.sign(integers).astype(np.int64))
    ranks = torch.stack(
        [torch.from_numpy(np.unique(np.abs(r), return_inverse=True)[1]) for r in integers]
    )
    floor = entropy_bits(signs * ranks + 64, 128) * integers.size / 8
    curves = 256 * 9 / 2
    assert len(packed) < 1.02 * floor + curves + 300
    assert len(packed) < 0.92 * entropy_bits(torch.from_numpy(order), 256) * integers.size / 8
    assert len(packed) < (bits + 1) / 8 * integers.size


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_any_axis_of_channels(axis: int) -> None:
    integers = np.ascontiguousarray(np.moveaxis(pwlq((40, 32, 9)), 0, axis))
    data = b"x" * 7 + integers.tobytes()
    packed, coded, _ = archive_of(data, [Weight(integers, axis)])
    assert coded == integers.size
    assert file_of(packed, LARGEST) == data
    wrong, _, _ = archive_of(data, [Weight(integers, (axis + 1) % 3)])
    assert file_of(wrong, LARGEST) == data
    assert len(packed) < 0.9 * len(wrong)


def test_what_is_not_pwlqs_goes_byte_by_byte() -> None:
    uniform = np.random.default_rng(0).normal(0, 30, (16, 2000)).clip(-128, 127).astype(np.int8)
    short = pwlq((64, 1, 3, 3))
    data = uniform.tobytes() + short.tobytes()
    packed, coded, integers = archive_of(data, [Weight(uniform), Weight(short)])
    assert (coded, integers) == (0, len(data))
    assert file_of(packed, LARGEST) == data
    values = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
    assert len(packed) < 1.01 * entropy_bits(values, 256) * len(data) / 8 + 300


def test_weights_that_are_there_once_and_said_twice() -> None:
    integers = pwlq((8, 512))
    once, twice = integers.tobytes(), integers.tobytes() * 2
    for data, count in ((once, 1), (twice, 2)):
        packed, coded, _ = archive_of(data, [Weight(integers)] * 2)
        assert coded == count * integers.size
        assert file_of(packed, LARGEST) == data
    packed, coded, integers_ = archive_of(b"nothing of it", [Weight(integers)])
    assert (coded, integers_) == (0, 0)
    assert file_of(packed, LARGEST) == b"nothing of it"


@pytest.mark.parametrize("width", [3, 5, 7])
@pytest.mark.parametrize("pairs", [False, True])
def test_dense_codes(width: int, pairs: bool) -> None:
    """Planes are built here bit by bit."""
    generator = np.random.default_rng(width)
    codes = generator.binomial(2**width - 1, 0.5, 600).astype(np.uint8)
    values = codes.astype(int)
    if pairs:
        values = values[::2] + values[1::2] * 2**width
    total = width * (1 + pairs)
    cut = [(4, 0, 75)] + [(1, low, 1) for low in range(4, total)]
    constants = []
    for bits, low, inner in cut:
        part = [int(v) >> low & 2**bits - 1 for v in values]
        per = 8 // bits
        size = -(-len(part) // (per * inner)) * inner
        buffer = [0] * size
        for i, v in enumerate(part):
            outer, place = divmod(i, per * inner)
            which, column = divmod(place, inner)
            buffer[outer * inner + column] += v << bits * which
        constants.append(bytes(buffer))
    planes = tuple(Plane(*one) for one in cut)
    if not pairs and width == 3:
        planes, constants = (Plane(4, 0, 75),), constants[:1]
    data = b"-" + b"+".join(constants)
    packed, coded, _ = archive_of(data, [Codes(codes, width, pairs, planes)])
    assert coded == (600 if all(len(c) >= 64 for c in constants) else 0)
    assert file_of(packed, LARGEST) == data


@settings(deadline=None, max_examples=60)
@given(
    rest=st.lists(st.binary(max_size=60), min_size=1, max_size=5),
    shape=st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9)),
    axis=st.integers(0, 2),
    kind=st.sampled_from(["pwlq", "noise", "few"]),
    seed=st.integers(0, 9),
    said=st.integers(0, 3),
)
def test_every_file_comes_back(
    rest: list[bytes], shape: tuple[int, int, int], axis: int, kind: str, seed: int, said: int
) -> None:
    generator = np.random.default_rng(seed)
    array = {
        "pwlq": lambda: pwlq(shape, seed=seed),
        "noise": lambda: generator.integers(-128, 128, shape).astype(np.int8),
        "few": lambda: generator.integers(-1, 2, shape).astype(np.int8),
    }[kind]()
    data = array.tobytes().join([*rest, b""])
    packed, coded, integers = archive_of(data, [Weight(array, axis)] * said)
    assert file_of(packed, LARGEST) == data
    assert coded + integers == (min(said, len(rest)) * array.size if array.size >= 64 else 0)


def test_what_cannot_be_packed(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive.pack(file)
    with pytest.raises(ValueError, match=r"net.bin.zaq: it is an archive already"):
        archive.pack(f"{file}.zaq")
    with pytest.raises(ValueError, match="it would be overwritten; name another file"):
        archive.pack(file, file)
    with pytest.raises(ValueError, match="does not end in .zaq; name the file to write"):
        archive.unpack(file)
    with pytest.raises(FileNotFoundError):
        archive.pack(tmp_path / "nowhere.onnx")
    monkeypatch.setattr("zaq_plugin.archive.files.find_reader", lambda _: lambda _: [])
    with pytest.raises(ValueError, match="holds no int8 weights, nor codes of them"):
        archive.pack(file, tmp_path / "new.zaq")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"ends in \.onnx, \.pte, \.tflite; got \.bin"):
        archive.pack(file, tmp_path / "new.zaq")
    assert not (tmp_path / "new.zaq").exists()


def test_a_full_disk_leaves_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        archive.pack(file)
    assert list(file.parent.iterdir()) == [file]


def test_the_digest_is_of_the_file(file: Path) -> None:
    packed = archive.pack(file)
    digest = hashlib.sha256(file.read_bytes()).digest()
    assert digest in Path(packed.path).read_bytes()[:64]
