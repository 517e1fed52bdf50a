"""Codes and codebooks: what is packed comes back, in numpy, in ONNX Runtime and in OpenVINO."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx_weights import model_of

import zaq_onnx
from zaq_onnx.codes import encode, pack_plane, pairs_pay, planes_of
from zaq_onnx.files import unpack_model
from zaq_onnx.graph import Graph
from zaq_onnx.packing import pack_model
from zaq_onnx.runtimes import openvino_compiled, openvino_kernels, ort_session
from zaq_onnx.weights import weights_of
from zaq_plugin import PWLQSpec
from zaq_plugin.ptq import calibrate, fold_batch_norm, simulate
from zaq_plugin.pwlq import quantize


def random_weight(shape: tuple[int, ...], axis: int, levels: int, seed: int) -> np.ndarray:
    """Every channel draws from its own levels, and uses all of them where there is room."""
    rng = np.random.default_rng(seed)
    count = math.prod(shape) // shape[axis]
    rows = []
    for _ in range(shape[axis]):
        book = rng.choice(np.arange(-127, 128), levels, replace=False)
        forced = book[: min(levels, count)]
        rows.append(np.concatenate([forced, rng.choice(book, count - len(forced))]))
    moved = np.array(rows, np.int8).reshape(shape[axis], *np.delete(shape, axis))
    return np.ascontiguousarray(np.moveaxis(moved, 0, axis))


CASES = [
    ((16, 8, 5, 5), 0, 2),
    ((16, 8, 5, 5), 0, 4),
    ((8, 400), 0, 7),
    ((16, 40, 3, 3), 0, 15),
    ((16, 40, 3, 3), 0, 16),
    ((9, 151), 0, 15),
    ((400, 6), 1, 16),
    ((8, 16, 9, 9), 0, 31),
    ((5, 3001), 0, 32),
    ((4, 8, 30, 30), 0, 63),
    ((3, 5, 31, 31), 1, 64),
    ((2, 9000), 0, 100),
]


@pytest.mark.parametrize(("shape", "axis", "levels"), CASES)
def test_every_width_unfolds_to_the_same_integers(
    shape: tuple[int, ...], axis: int, levels: int
) -> None:
    """The oracle is the weight itself; the runtimes' own kernels do the unfolding."""
    integers = random_weight(shape, axis, levels, seed=levels)
    plain = Graph(model_of(integers, axis)).to_model()
    packed, done = pack_model(plain)
    assert done == 1
    width = math.ceil(math.log2(levels))
    assert packed.ByteSize() < plain.ByteSize() * width / 8 + shape[axis] * levels + 2000
    x = np.zeros(1, np.float32)
    for optimize in (False, True):
        session = ort_session(packed, optimize=optimize)
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], integers)
    np.testing.assert_array_equal(openvino_compiled(packed)([x])[0], integers)
    assert unpack_model(packed).SerializeToString() == plain.SerializeToString()


OLD = {"UINT4", "UINT32"}
"""Types that not every runtime reads."""


def types_of(model: onnx.ModelProto) -> set[str]:
    """Of constants, and of what is cast to."""
    casts = [n.attribute[0].i for n in model.graph.node if n.op_type == "Cast"]
    kinds = [t.data_type for t in model.graph.initializer] + casts
    return {TensorProto.DataType.Name(kind) for kind in kinds}


@pytest.mark.parametrize(("shape", "axis", "levels"), CASES)
def test_portable_files_have_no_small_types(shape: tuple[int, ...], axis: int, levels: int) -> None:
    """Both forms unfold to the same integers; operators that OpenCV or tinygrad lack are absent."""
    integers = random_weight(shape, axis, levels, seed=levels)
    plain = Graph(model_of(integers, axis)).to_model()
    portable, small = (pack_model(plain, portable=form)[0] for form in (True, False))
    assert not types_of(portable) & OLD
    assert "BitShift" not in {node.op_type for node in portable.graph.node}
    for node in portable.graph.node:
        assert node.op_type != "Slice" or len(node.input) == 4
        assert node.op_type != "Split" or any(a.name == "axis" for a in node.attribute)
    assert portable.ByteSize() <= small.ByteSize() + 400
    for packed_model in (portable, small):
        assert unpack_model(packed_model).SerializeToString() == plain.SerializeToString()
    x = np.zeros(1, np.float32)
    np.testing.assert_array_equal(ort_session(small).run(None, {"x": x})[0], integers)
    portable.opset_import[0].version = 19
    np.testing.assert_array_equal(ort_session(portable).run(None, {"x": x})[0], integers)


@pytest.mark.slow
@given(
    st.integers(1, 6),
    st.integers(1, 60),
    st.integers(1, 128),
    st.integers(0, 2**32 - 1),
)
def test_codes_say_where_in_the_codebook(channels: int, count: int, levels: int, seed: int) -> None:
    rows = random_weight((channels, count), 0, levels, seed)
    coded = encode(rows)
    assert coded is not None
    unfolded = np.take_along_axis(coded.book, coded.codes.astype(int), 1).reshape(rows.shape)
    np.testing.assert_array_equal(unfolded, rows)
    largest = max(len(np.unique(row)) for row in rows)
    assert coded.width >= max(1, math.ceil(math.log2(largest)))
    assert coded.book.shape[1] == 2**coded.width
    if coded.curve is None:
        assert coded.width == max(1, math.ceil(math.log2(largest)))


@given(st.integers(1, 7))
def test_planes_cover_every_bit_once(width: int) -> None:
    codes = np.arange(2**width, dtype=np.uint8).reshape(1, -1)
    planes = planes_of(codes, width)
    bits = [low + i for size, low, _ in planes for i in range(size)]
    assert sorted(bits) == list(range(width))
    np.testing.assert_array_equal(
        sum(values.astype(int) << low for _, low, values in planes), codes
    )


@given(st.sampled_from([1, 2]), st.lists(st.integers(0, 255), min_size=1, max_size=50))
def test_planes_are_dense(bits: int, values: list[int]) -> None:
    """Against Python's own big integers: value i stands at bit i * bits."""
    array = np.array(values) % 2**bits
    packed = pack_plane(array, bits).reshape(-1)
    assert len(packed) == math.ceil(len(values) * bits / 8)
    number = int.from_bytes(packed.tobytes(), "little")
    assert [number >> (i * bits) & (2**bits - 1) for i in range(len(values))] == list(array)


def test_a_weight_of_more_than_128_levels_stays() -> None:
    rows = np.tile(np.arange(-128, 127, dtype=np.int8), (4, 8))
    assert encode(rows) is None
    plain = Graph(model_of(rows, 0)).to_model()
    assert pack_model(plain) == (plain, 0)


def test_short_rows_are_gathered_one_by_one_and_long_ones_in_pairs() -> None:
    long, short, odd = (encode(random_weight((2, n), 0, 16, 0)) for n in (200, 20, 201))
    assert long is not None
    assert short is not None
    assert odd is not None
    assert pairs_pay(long)
    assert not pairs_pay(short)
    assert not pairs_pay(odd)


@pytest.mark.slow
def test_small_layers_stay_int8(pt2e_case: Any) -> None:
    """Nine weights a channel and their levels take more than nine bytes."""
    layers = {layer.name: layer for layer in zaq_onnx.info(pt2e_case.packed).layers}
    assert layers["body"].stored_bits == 8
    assert layers["body"].bytes == 16 * 9
    assert "kept as int8" in layers["body"].format
    assert layers["wide"].stored_bits == 4


@pytest.mark.slow
def test_unpack_restores_the_int8_file(case: Any, tmp_path: Path) -> None:
    target = tmp_path / "packed.onnx"
    assert zaq_onnx.pack(case.plain, target) == target.stat().st_size
    assert target.read_bytes() == case.packed.read_bytes()
    assert zaq_onnx.unpack(target, tmp_path / "plain.onnx") > target.stat().st_size
    assert (tmp_path / "plain.onnx").read_bytes() == case.plain.read_bytes()


def test_nothing_to_do_is_an_error(pt2e_case: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no weight was packed"):
        zaq_onnx.pack(pt2e_case.packed, tmp_path / "a.onnx")
    with pytest.raises(ValueError, match="nothing to unpack: no weight is packed"):
        zaq_onnx.unpack(pt2e_case.plain, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_packed_and_int8_files_are_one_to_the_runtime(case_of: Callable[[str], Any]) -> None:
    """The same optimized graph, operator by operator and constant by constant."""
    from zaq_onnx.runtimes import optimized

    case = case_of("pt2e")
    both = []
    for path in (case.packed, case.plain):
        graph = optimized(path).graph
        constants = {t.name: numpy_helper.to_array(t).tobytes() for t in graph.initializer}
        both.append([(n.op_type, [constants.get(i) for i in n.input]) for n in graph.node])
    assert both[0] == both[1]
    assert sum(w.packed for w in weights_of(Graph(onnx.load(case.packed)))) >= 1


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_random_weights_come_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(v) for v in rng.integers(1, 30, rng.integers(2, 5)))
    axis = int(rng.integers(0, len(shape)))
    integers = random_weight(shape, axis, int(rng.integers(1, 40)), seed)
    plain = Graph(model_of(integers, axis)).to_model()
    packed, _ = pack_model(plain)
    assert unpack_model(packed).SerializeToString() == plain.SerializeToString()


def pwlq_rows(channels: int, count: int, spec: PWLQSpec, seed: int) -> np.ndarray:
    """Integers that the core's own PWLQ makes of normal weights."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(channels, count, generator=generator)
    integers: np.ndarray = quantize(weight, spec).integer_weight().to(torch.int8).numpy()
    return integers


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
@pytest.mark.parametrize("symmetry", ["asymmetric", "symmetric"])
@pytest.mark.parametrize(("overflow", "nibbles"), [("allowed", 9), ("pairs", 11)])
def test_codebooks_of_pwlq_are_three_numbers(
    bits: int, symmetry: Any, overflow: Any, nibbles: int
) -> None:
    """For the weights of the core's own PWLQ: 4.5 bytes a channel, exceptions under 1 %.

    Where no two products may overflow, the larger clip is a number, too, and takes a byte more.
    """
    spec = PWLQSpec(bits=bits, symmetry=symmetry, overflow=overflow)
    rows = pwlq_rows(40, 900, spec, seed=bits)
    coded = encode(rows)
    assert coded is not None
    assert coded.curve is not None
    assert coded.width == spec.stored_bits
    assert coded.curve.nibbles.shape == (40, nibbles)
    assert len(coded.curve.exceptions) <= 0.01 * 40 * spec.num_levels
    np.testing.assert_array_equal(np.take_along_axis(coded.book, coded.codes.astype(int), 1), rows)


def test_exceptions_are_levels_that_no_curve_gives() -> None:
    """Two levels of one channel are moved by three: the curve stays, with exceptions."""
    rows = pwlq_rows(24, 600, PWLQSpec(bits=4), seed=0)
    before = encode(rows)
    assert before is not None
    assert before.curve is not None
    levels = np.unique(rows[5])
    moved = rows.copy()
    for level in levels[np.flatnonzero(np.diff(levels) > 4)[:2]]:
        moved[5][rows[5] == level] = level + 3
    after = encode(moved)
    assert after is not None
    assert after.curve is not None
    assert 0 < len(after.curve.exceptions) - len(before.curve.exceptions) <= 15
    plain = Graph(model_of(moved, 0)).to_model()
    packed, done = pack_model(plain)
    assert done == 1
    assert any(t.name.endswith(".where") for t in packed.graph.initializer)
    x = np.zeros(1, np.float32)
    np.testing.assert_array_equal(ort_session(packed).run(None, {"x": x})[0], moved)
    np.testing.assert_array_equal(openvino_compiled(packed)([x])[0], moved)


def test_equal_codebooks_are_stored_once() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(-7, 8, (32, 64)).astype(np.int8)
    coded = encode(rows)
    assert coded is not None
    assert coded.book.shape == (1, 16)
    plain = Graph(model_of(rows, 0)).to_model()
    packed, done = pack_model(plain)
    assert done == 1
    x = np.zeros(1, np.float32)
    np.testing.assert_array_equal(ort_session(packed).run(None, {"x": x})[0], rows)
    np.testing.assert_array_equal(openvino_compiled(packed)([x])[0], rows)
    assert unpack_model(packed).SerializeToString() == plain.SerializeToString()


@pytest.mark.slow
def test_layers_of_one_shape_are_unfolded_as_one(tmp_path: Path) -> None:
    """Three layers: one Gather, one Split; the runtimes fold all of it."""
    torch.manual_seed(0)
    layers = [layer for _ in range(3) for layer in (torch.nn.Conv2d(32, 32, 3), torch.nn.ReLU())]
    model, images = torch.nn.Sequential(*layers), torch.randn(2, 32, 12, 12)
    student = simulate(fold_batch_norm(model.eval(), (images,)), PWLQSpec(bits=3))
    calibrate(student, [images])
    exported = zaq_onnx.export(student, (images,), tmp_path / "a.onnx", reduce_range=True)
    kinds = [node.op_type for node in onnx.load(exported.path).graph.node]
    assert kinds.count("Gather") == kinds.count("Split") == 1
    zaq_onnx.verify(exported.path, student, images).require()
    layers_there = zaq_onnx.info(exported.path).layers
    assert {layer.stored_bits for layer in layers_there} == {4}
    assert len({layer.bytes for layer in layers_there}) == 1


def test_a_weight_that_does_not_unfold_to_itself_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    integers = random_weight((16, 400), 0, 40, seed=1)
    right = encode(integers)
    assert right is not None
    wrong = dataclasses.replace(right, codes=right.codes ^ 1)
    monkeypatch.setattr("zaq_onnx.weights.encode", lambda rows: wrong)
    with pytest.raises(RuntimeError, match="'w' does not unfold to itself"):
        pack_model(Graph(model_of(integers, 0)).to_model())


@pytest.mark.parametrize("count", [1, 2])
def test_transposed_weights_stay_integers_in_openvino(count: int) -> None:
    """Products whose weight is (inputs, outputs): alone and large, or several as one."""
    rng, kind = np.random.default_rng(0), TensorProto.FLOAT
    values = {"s": np.array(0.02, np.float32), "z": np.array(128, np.uint8)}
    nodes, name = [], "x"
    for i in range(count):
        levels = np.arange(-60, 61, 8).astype(np.int8)
        values[f"w{i}"] = rng.choice(levels, (256, 256))
        values[f"v{i}"] = np.full(256, 0.001, np.float32)
        weight = helper.make_node("DequantizeLinear", [f"w{i}", f"v{i}"], [f"d{i}"], axis=1)
        nodes += [
            helper.make_node("QuantizeLinear", [name, "s", "z"], [f"q{i}"]),
            helper.make_node("DequantizeLinear", [f"q{i}", "s", "z"], [f"e{i}"]),
            weight,
            helper.make_node("MatMul", [f"e{i}", f"d{i}"], [f"y{i}"]),
        ]
        name = f"y{i}"
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", kind, [1, 4, 256])],
        [helper.make_tensor_value_info(name, kind, None)],
        [numpy_helper.from_array(v, n) for n, v in values.items()],
    )
    plain = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    plain = Graph(plain).to_model()
    packed, done = pack_model(plain)
    assert done == count
    assert unpack_model(packed).SerializeToString() == plain.SerializeToString()
    first, second = openvino_compiled(plain), openvino_compiled(packed)
    assert openvino_kernels(second)["FullyConnected u8"] == count
    assert openvino_kernels(first) == openvino_kernels(second)
    x = rng.normal(size=(1, 4, 256)).astype(np.float32)
    np.testing.assert_array_equal(first([x])[0], second([x])[0])
