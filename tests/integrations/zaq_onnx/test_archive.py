"""Archives of ONNX files: int8 weights, and dense codes in every order that packing gives them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_weights import model_of
from pwlq_integers import pwlq

import zaq_onnx
from zaq_onnx.files import write
from zaq_onnx.packing import pack_model
from zaq_plugin import archive
from zaq_plugin.archive import Codes

KINDS = ["int8", "portable", "uint4"]


def there_and_back(path: Path) -> archive.Packed:
    data, packed = path.read_bytes(), archive.pack(path)
    back = path.with_name("back.onnx")
    back.unlink(missing_ok=True)
    assert archive.unpack(packed.path, back) == len(data)
    assert back.read_bytes() == data
    return packed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("shape", "axis", "bits"),
    [
        ((64, 32, 3, 3), 0, 4),
        ((64, 32, 3, 3), 0, 3),
        ((48, 135), 0, 4),
        ((51, 49), 0, 3),
        ((300, 300), 0, 4),
        ((32, 64, 3, 3), 1, 4),
        ((64, 32), 1, 3),
    ],
)
def test_every_layout_of_codes(
    kind: str, shape: tuple[int, ...], axis: int, bits: int, tmp_path: Path
) -> None:
    """All weights are found as codes, and take about as much in each of the three files."""
    channels = (shape[axis], *np.delete(shape, axis))
    integers = np.ascontiguousarray(np.moveaxis(pwlq(channels, bits), 0, axis))
    model, path = model_of(integers, axis), tmp_path / "net.onnx"
    write(model, path)
    plain = there_and_back(path).bytes
    if kind != "int8":
        packed, done = pack_model(model, portable=kind == "portable")
        assert done == 1
        write(packed, path)
        (reader,) = archive.find_reader(path)(path)
        assert isinstance(reader, Codes)
    sizes = there_and_back(path)
    assert (sizes.coded, sizes.integers) == (integers.size, 0)
    assert sizes.bytes < plain + 0.02 * integers.size + 900  # the nodes that unfold it


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_whole_models(kind: str, pt2e_case: Any, tmp_path: Path) -> None:
    """Also with weights that share a constant, and such as nobody packed."""
    path = tmp_path / "net.onnx"
    if kind == "uint4":
        zaq_onnx.export(pt2e_case.model, (pt2e_case.images,), path, portable=False)
    else:
        source = pt2e_case.plain if kind == "int8" else pt2e_case.packed
        path.write_bytes(source.read_bytes())
    packed = there_and_back(path)
    layers = {"stem.0": 16 * 27, "body": 16 * 9, "wide": 32 * 144, "short": 512, "fc": 320}
    assert packed.coded + packed.integers == sum(layers.values())
    assert packed.coded >= layers["wide"]
    assert packed.bytes < packed.zipped_bytes


def test_a_foreign_or_damaged_file(pt2e_case: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(pt2e_case.packed.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"net.onnx: not an ONNX model, or damaged"):
        archive.pack(path)
    assert list(tmp_path.iterdir()) == [path]
