"""Damaged, foreign and hostile files: one clear sentence, never a crash or a wrong model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, numpy_helper

import zaq_onnx
from zaq_onnx.packing import load

SHARED = [HealthCheck.function_scoped_fixture]


@pytest.fixture(scope="module")
def packed(case_of: Callable[[str], Any]) -> bytes:
    """The bytes of a good file."""
    data: bytes = case_of("pt2e").packed.read_bytes()
    return data


def written(path: Path, model: ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def changed(data: bytes, name: str, value: np.ndarray[Any, Any]) -> ModelProto:
    """The model with another constant."""
    model = ModelProto.FromString(data)
    (tensor,) = [t for t in model.graph.initializer if t.name == name]
    tensor.CopyFrom(numpy_helper.from_array(value, name))
    return model


def constant(data: bytes, suffix: str) -> tuple[str, np.ndarray[Any, Any]]:
    model = ModelProto.FromString(data)
    found = [t for t in model.graph.initializer if t.name.endswith(suffix)]
    return found[0].name, numpy_helper.to_array(found[0])


@settings(max_examples=30, suppress_health_check=SHARED)
@given(share=st.floats(0, 0.9999))
def test_truncated_files_are_refused(packed: bytes, tmp_path: Path, share: float) -> None:
    path = tmp_path / "t.onnx"
    path.write_bytes(packed[: int(share * len(packed))])
    with pytest.raises(ValueError, match=r"t\.onnx: "):
        load(path, checked=False)


@settings(max_examples=60, suppress_health_check=SHARED)
@given(share=st.floats(0, 0.99999), bit=st.integers(0, 7))
def test_no_flipped_bit_goes_unnoticed(
    packed: bytes, tmp_path: Path, share: float, bit: int
) -> None:
    """Whatever bit it is, the file is refused, or it still is the same model, to the bit."""
    data = bytearray(packed)
    data[int(share * len(data))] ^= 1 << bit
    path = tmp_path / "c.onnx"
    path.write_bytes(bytes(data))
    found, told = None, ""
    try:
        found = load(path, checked=False)
    except ValueError as error:
        told = str(error)
    if found is None:
        assert "c.onnx: " in told
        return
    good = ModelProto.FromString(packed)
    for model in (found, good):  # only the manifest's other words may have changed
        del model.metadata_props[:]
    assert found.SerializeToString() == good.SerializeToString()


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"PK\x03\x04 no model", b"{}"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not an ONNX model"):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing.onnx")


@pytest.mark.parametrize(
    ("version", "text"),
    [(17, "opset 17, but codes of 4 bits need opset 21"), (999, "opset 999 is newer than onnx")],
)
def test_other_opsets_are_refused(packed: bytes, tmp_path: Path, version: int, text: str) -> None:
    model = ModelProto.FromString(packed)
    model.opset_import[0].version = version
    with pytest.raises(ValueError, match=text):
        load(written(tmp_path / "o.onnx", model))


def test_a_code_outside_its_codebook_is_found(packed: bytes, tmp_path: Path) -> None:
    """In the middle, where the runtime would silently read the next channel's codebook."""
    name, codes = constant(packed, ".u8")
    wrong = codes.copy()
    wrong[1, 3] = 255
    _, book = constant(packed, name.removesuffix(".u8") + ".book")
    assert book.shape[1] ** 2 <= 255
    path = written(tmp_path / "b.onnx", changed(packed, name, wrong))
    with pytest.raises(ValueError, match="code 255 lies outside its codebook of .* entries"):
        load(path)
    report = zaq_onnx.verify(path)
    assert not report.ok
    assert "lies outside its codebook" in report.problems[0]


def test_a_changed_codebook_weight_or_bias_is_found(packed: bytes, tmp_path: Path) -> None:
    for suffix in (".book", ".bias", ".scale", "body.weight"):
        name, value = constant(packed, suffix)
        other = value.copy()
        other.reshape(-1)[0] += 1
        path = written(tmp_path / "d.onnx", changed(packed, name, other))
        with pytest.raises(ValueError, match="its digest differs"):
            load(path)


def test_a_codebook_of_too_few_channels_is_found(packed: bytes, tmp_path: Path) -> None:
    name, book = constant(packed, ".book")
    path = written(tmp_path / "e.onnx", changed(packed, name, book[1:]))
    with pytest.raises(ValueError, match=r"e\.onnx: weight .*"):
        load(path)


@settings(max_examples=40, suppress_health_check=SHARED)
@given(
    dims=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=0, max_size=6),
    which=st.integers(0, 10**6),
)
def test_hostile_shapes_of_constants_are_refused(
    packed: bytes, tmp_path: Path, dims: list[int], which: int
) -> None:
    model = ModelProto.FromString(packed)
    tensor = model.graph.initializer[which % len(model.graph.initializer)]
    if list(tensor.dims) == dims:
        return
    del tensor.dims[:]
    tensor.dims.extend(dims)
    with pytest.raises(ValueError, match=r"h\.onnx: "):
        load(written(tmp_path / "h.onnx", model), checked=False)


@settings(max_examples=40, suppress_health_check=SHARED)
@given(
    values=st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=5),
    which=st.integers(0, 10**6),
)
def test_hostile_shapes_within_the_unfolding_are_refused(
    packed: bytes, tmp_path: Path, values: list[int], which: int
) -> None:
    """Shapes, ends and offsets are constants: none may make us allocate, hang or go wrong."""
    model = ModelProto.FromString(packed)
    shapes = [t for t in model.graph.initializer if t.name.startswith("zaq.")]
    tensor = shapes[which % len(shapes)]
    old = numpy_helper.to_array(tensor)
    new = np.resize(np.array(values), old.shape or ()).astype(old.dtype)
    if np.array_equal(old, new):
        return
    tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))
    with pytest.raises(ValueError, match=r"s\.onnx: "):
        load(written(tmp_path / "s.onnx", model), checked=False)


def test_unknown_types_and_external_data_are_refused(packed: bytes, tmp_path: Path) -> None:
    model = ModelProto.FromString(packed)
    model.graph.initializer[0].data_type = 9999
    with pytest.raises(ValueError, match="has the unknown type 9999"):
        load(written(tmp_path / "y.onnx", model))
    model = ModelProto.FromString(packed)
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(ValueError, match="lies in another file"):
        load(written(tmp_path / "z.onnx", model))


def test_a_damaged_manifest_is_refused(packed: bytes, tmp_path: Path) -> None:
    model = ModelProto.FromString(packed)
    good = model.metadata_props[0].value
    for text, message in (
        (good[:-9], "the metadata 'zaq' is damaged"),
        (good.replace("zaq_onnx/1", "zaq_onnx/9"), "is not of format 'zaq_onnx/1'"),
    ):
        model.metadata_props[0].value = text
        with pytest.raises(ValueError, match=message):
            load(written(tmp_path / "m.onnx", model))


def test_other_peoples_models_are_no_error_but_to_info(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    values = [onnx.helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy"]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
    opsets = [onnx.helper.make_opsetid("", 21)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    path = written(tmp_path / "f.onnx", model)
    assert load(path).graph.node[0].op_type == "Relu"
    with pytest.raises(ValueError, match="not written by zaq_onnx.export"):
        zaq_onnx.info(path)
    assert "nothing in this file is quantized" in zaq_onnx.verify(path).problems[0]
