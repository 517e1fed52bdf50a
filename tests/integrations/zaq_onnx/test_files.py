"""Damaged, foreign and hostile files: one clear sentence, never a crash or a wrong model."""

import contextlib
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
from zaq_onnx.files import load, unpack_model
from zaq_onnx.graph import Graph
from zaq_onnx.packing import pack_model
from zaq_onnx.weights import weights_of

SHARED = [HealthCheck.function_scoped_fixture]


def model_of(integers: np.ndarray[Any, Any], axis: int) -> ModelProto:
    """A model whose output is one dequantized weight (plus its input, a number)."""
    helper = onnx.helper
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["w", "s"], ["v"], axis=axis),
            helper.make_node("Add", ["v", "x"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(integers.shape))],
        [
            numpy_helper.from_array(integers, "w"),
            numpy_helper.from_array(np.ones(integers.shape[axis], np.float32), "s"),
        ],
    )
    opsets = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def random_weight(
    shape: tuple[int, ...], axis: int, levels: int, seed: int
) -> np.ndarray[Any, Any]:
    """Every channel draws from its own levels, and uses all of them."""
    rng = np.random.default_rng(seed)
    count = int(np.prod(shape)) // shape[axis]
    rows = []
    for _ in range(shape[axis]):
        book = rng.choice(np.arange(-127, 128), levels, replace=False)
        rows.append(np.concatenate([book, rng.choice(book, count - levels)]))
    moved = np.array(rows, np.int8).reshape(shape[axis], *np.delete(shape, axis))
    return np.ascontiguousarray(np.moveaxis(moved, 0, axis))


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
    tensors = [t for t in model.graph.initializer if t.name.endswith(suffix)]
    return tensors[0].name, numpy_helper.to_array(tensors[0])


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
    """Whatever bit it is, the file is refused, or it unfolds to the same model, to the bit."""
    data = bytearray(packed)
    data[int(share * len(data))] ^= 1 << bit
    path = tmp_path / "c.onnx"
    path.write_bytes(bytes(data))
    loaded, message = None, ""
    try:
        loaded = load(path, checked=False)
    except ValueError as error:
        message = str(error)
    if loaded is None:
        assert "c.onnx: " in message
        return
    both = [unpack_model(model) for model in (loaded, ModelProto.FromString(packed))]
    for model in both:  # only levels that no weight has, or the manifest's other words, may differ
        del model.metadata_props[:]
        model.DiscardUnknownFields()  # the manifest under a number that no field has
    assert both[0].SerializeToString() == both[1].SerializeToString()


def test_nodes_that_are_not_of_their_operator_are_refused(packed: bytes, tmp_path: Path) -> None:
    """What ONNX's checker would say comes before it, as weights are unfolded first."""
    words = ModelProto.FromString(packed)
    axes = [
        attribute
        for node in words.graph.node
        if node.op_type == "DequantizeLinear"
        for attribute in node.attribute
        if attribute.name == "axis"
    ]
    for attribute in axes:
        attribute.type = onnx.AttributeProto.STRINGS
        attribute.ClearField("i")
    lost = ModelProto.FromString(packed)
    for node in lost.graph.node:
        if node.op_type in ("Reshape", "Gather"):
            node.output[0] = node.output[0] + "?"
    assert axes
    for model in (words, lost):
        with pytest.raises(ValueError, match=r"d\.onnx: "):
            load(written(tmp_path / "d.onnx", model), checked=False)


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
    [
        (12, "opset 12, but a scale per channel needs opset 13"),
        (999, "opset 999 is newer than onnx"),
    ],
)
def test_other_opsets_are_refused(packed: bytes, tmp_path: Path, version: int, text: str) -> None:
    model = ModelProto.FromString(packed)
    model.opset_import[0].version = version
    with pytest.raises(ValueError, match=text):
        load(written(tmp_path / "o.onnx", model))


def test_a_code_outside_its_codebook_is_found(tmp_path: Path) -> None:
    """In the middle, where the runtime would silently read the next channel's codebook."""
    path = tmp_path / "b.onnx"
    integers = random_weight((16, 80, 3, 3), 0, 40, seed=0)
    model, _ = pack_model(Graph(model_of(integers, 0)).to_model())
    path.write_bytes(model.SerializeToString())
    load(path)
    index = next(i for i, t in enumerate(model.graph.initializer) if t.name.endswith(".book"))
    book = numpy_helper.to_array(model.graph.initializer[index])
    name = model.graph.initializer[index].name
    for shape in ((32, 32), (8, 64), (16, 32)):  # other rows, or a shorter codebook
        part = np.resize(book, shape)
        model.graph.initializer[index].CopyFrom(numpy_helper.from_array(part, name))
        path.write_bytes(model.SerializeToString())
        with pytest.raises(ValueError, match=r"b\.onnx: weight '\w+' \(Gather\): .*(code|table)"):
            load(path)
        report = zaq_onnx.verify(path)
        assert not report.ok
        assert "(Gather)" in report.problems[0]


def test_a_changed_curve_weight_or_bias_is_found(packed: bytes, tmp_path: Path) -> None:
    for suffix in (".curves", ".u8", ".bias", ".scale", "body.weight"):
        name, value = constant(packed, suffix)
        other = value.copy()
        flat = other.reshape(-1).view(np.uint8)
        flat[0] ^= 1
        model = changed(packed, name, other)
        if suffix == ".curves":
            model = with_nibble(packed, name)
        path = written(tmp_path / "d.onnx", model)
        with pytest.raises(ValueError, match=r"its digest differs|damaged"):
            load(path)


def with_nibble(data: bytes, name: str) -> ModelProto:
    """The model with another largest nibble of the first channel's breakpoint."""
    model = ModelProto.FromString(data)
    (tensor,) = [t for t in model.graph.initializer if t.name == name]
    raw = bytearray(tensor.raw_data)
    raw[1] ^= 4
    tensor.raw_data = bytes(raw)
    return model


def test_curves_of_too_few_channels_are_found(packed: bytes, tmp_path: Path) -> None:
    name, _ = constant(packed, ".curves")
    model = ModelProto.FromString(packed)
    (tensor,) = [t for t in model.graph.initializer if t.name == name]
    rows = tensor.dims[0]
    tensor.dims[0] = rows - 2
    tensor.raw_data = tensor.raw_data[: -2 * tensor.dims[1]]
    with pytest.raises(ValueError, match=r"e\.onnx: weight .*table of .* entries"):
        load(written(tmp_path / "e.onnx", model))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [3, 5, 6])
def test_hostile_unfoldings_never_pass_silently(tmp_path: Path, bits: int) -> None:
    """Every constant of every kind of unfolding, changed: an error, or another weight's values.

    Without a manifest nothing knows what the weight was, but shapes and bounds must hold.
    """
    integers = random_weight((8, 900), 0, 2**bits - 1, seed=bits)
    model, done = pack_model(Graph(model_of(integers, 0)).to_model())
    assert done == 1
    rng = np.random.default_rng(bits)
    path = tmp_path / "h.onnx"
    for number in range(len(model.graph.initializer)):
        for _ in range(2):
            other = ModelProto()
            other.CopyFrom(model)
            tensor = other.graph.initializer[number]
            raw = bytearray(tensor.raw_data)
            raw[int(rng.integers(len(raw)))] ^= 1 << int(rng.integers(8))
            tensor.raw_data = bytes(raw)
            path.write_bytes(other.SerializeToString())
            with contextlib.suppress(ValueError):
                (weight,) = weights_of(Graph(load(path, checked=False)))
                assert weight.integers.shape == integers.shape
                assert weight.integers.dtype == np.int8


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
    shapes = [t for t in model.graph.initializer if t.name.endswith(".k")]
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
