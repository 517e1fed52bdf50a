"""Weights for processors whose kernels add two products in 16 bits: exact, and changed little."""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from processor import KERNELS_ARE_EXACT

import zaq_onnx
from zaq_onnx.adapters.stock import OnnxRuntime
from zaq_onnx.codes import encode
from zaq_onnx.graph import Graph
from zaq_onnx.reduction import SUM, reduce_rows, saturable, worst_pairs
from zaq_onnx.runtimes import ADVICE, WARNING, ort_session, run_ort, saturates
from zaq_onnx.weights import weights_of
from zaq_plugin.pwlq import PWLQSpec, quantize


def pwlq_rows(channels: int, count: int, bits: int, seed: int) -> np.ndarray:
    weight = torch.randn(channels, count, generator=torch.Generator().manual_seed(seed))
    integers = quantize(weight, PWLQSpec(bits=bits, overflow="allowed")).integer_weight()
    return integers.to(torch.int8).numpy()


def saturated(activations: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """What ``vpmaddubsw`` and ``vpaddd`` make of it: neighbours' products are added in 16 bits."""
    products = activations.astype(np.int64)[None] * rows.astype(np.int64)
    pairs = products.reshape(len(rows), -1, 2).sum(2)
    return np.clip(pairs, -(2**15), SUM).sum(1)


@pytest.mark.parametrize("bits", [3, 4])
def test_no_sum_saturates(bits: int) -> None:
    """With the worst activations, in either order of neighbours, against plain integers."""
    rows = pwlq_rows(24, 400, bits, seed=bits)
    reduced, factors = reduce_rows(rows, SUM // 255)
    assert (factors < 1).any()
    for shift in (0, 1):
        moved = np.roll(rows, shift, 1), np.roll(reduced, shift, 1)
        if shift:  # neighbours of the ends are none
            moved = moved[0][:, 1:-1], moved[1][:, 1:-1]
        for sign in (1, -1):
            for channel in range(len(rows)):
                worst = np.where(np.sign(moved[1][channel]) == sign, 255, 0)
                exact = moved[1].astype(np.int64) @ worst
                np.testing.assert_array_equal(saturated(worst, moved[1]), exact)
    before = np.where(rows[0] > 0, 255, 0)
    assert (saturated(before, rows) != rows.astype(np.int64) @ before).any()


@pytest.mark.parametrize("bits", [3, 4, 5])
def test_sums_change_less_than_by_halving(bits: int) -> None:
    """Against what other tools do: seven bits for all weights. Sums are what moves a mean."""
    rows = pwlq_rows(32, 600, bits, seed=bits)
    reduced, factors = reduce_rows(rows, SUM // 255)
    halved = np.rint(rows / 127 * 63) * 127 / 63
    ours = reduced / factors[:, None]
    assert ((ours - rows) ** 2).mean() < 1.1 * ((halved - rows) ** 2).mean()
    assert np.abs((ours - rows).sum(1)).mean() < 0.25 * np.abs((halved - rows).sum(1)).mean()


@pytest.mark.parametrize("bits", [3, 4])
def test_levels_of_pwlq_stay_a_curve(bits: int) -> None:
    """5.5 bytes a channel in place of 4.5, the same codes, hardly an exception."""
    rows = pwlq_rows(40, 900, bits, seed=7)
    before = encode(rows)
    after = encode(reduce_rows(rows, SUM // 255)[0])
    assert before is not None
    assert after is not None
    assert after.curve is not None
    assert after.width == before.width
    assert after.curve.nibbles.shape == (40, 11)
    assert len(after.curve.exceptions) <= 0.02 * 40 * 2**after.width


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 40), st.integers(64, 254))
def test_any_weights_are_made_to_fit(seed: int, channels: int, count: int, limit: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(-128, 128, (channels, count)).astype(np.int8)
    reduced, factors = reduce_rows(rows, limit)
    assert reduced.dtype == np.int8
    assert (worst_pairs(reduced) <= limit).all()
    assert ((factors > 0) & (factors <= 1)).all()
    fits = worst_pairs(rows) <= limit
    np.testing.assert_array_equal(reduced[fits], rows[fits])
    assert (factors[fits] == 1).all()
    assert np.abs(reduced / factors[:, None] - rows).max() <= 0.51 / factors.min() + 1


def weights(path: Path) -> dict[str, np.ndarray]:
    """Float weights by layer, read without help."""
    graph = onnx.load(path).graph
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    by_layer = {}
    for node in graph.node:
        codes = values.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if codes is not None and codes.ndim > 1:
            scale = values[node.input[1]].reshape(-1, *[1] * (codes.ndim - 1))
            by_layer[node.input[0]] = codes * scale
    return by_layer


@pytest.mark.slow
def test_files_hold_reduced_weights(wide_case: Any, tmp_path: Path) -> None:
    """Depthwise layers, whose kernels do not saturate, are as they were; others nearly."""
    path = tmp_path / "reduced.onnx"
    example = (wide_case.images,)
    zaq_onnx.export(wide_case.model, example, path, pack=False, reduce_range=True)
    whole = tmp_path / "whole.onnx"
    zaq_onnx.export(wide_case.model, example, whole, pack=False)
    before, after = weights(whole), weights(path)
    assert list(before) == list(after)
    for name, floats in after.items():
        step = np.abs(floats).max() / 32
        np.testing.assert_allclose(floats, before[name], atol=step)
    np.testing.assert_array_equal(after["body.weight"], before["body.weight"])
    assert any((after[n] != before[n]).any() for n in after)
    for weight in weights_of(Graph(onnx.load(path))):
        if weight.name != "body.weight":
            order = np.moveaxis(weight.integers.reshape(*weight.integers.shape[:2], -1), 1, 2)
            assert worst_pairs(order.reshape(len(order), -1)).max() <= SUM // 255
    x = (wide_case.images,)
    first, second = (run_ort(ort_session(p, optimize=False), x)[0] for p in (path, whole))
    assert np.abs(first - second).max() < 0.15 * np.abs(second).max()


def test_files_of_weights_that_do_not_overflow_need_no_reduction(
    pt2e_case: Any, tmp_path: Path
) -> None:
    """What hosts make by default goes into the file bit for bit."""
    path = tmp_path / "again.onnx"
    zaq_onnx.export(pt2e_case.model, (pt2e_case.images,), path, pack=False, reduce_range=True)
    assert path.read_bytes() == pt2e_case.whole.read_bytes()
    assert saturable(Graph(onnx.load(path))) == []


@pytest.mark.slow
def test_verification_knows_the_reduction(wide_case: Any, tmp_path: Path) -> None:
    path = tmp_path / "reduced.onnx"
    zaq_onnx.export(wide_case.model, (wide_case.images,), path, reduce_range=True)
    report = zaq_onnx.verify(path, wide_case.model, wide_case.images)
    assert report.ok, str(report)
    assert any("coarser grids" in text for text in report.remarks)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_saturation_is_found_where_it_is(runtime: str) -> None:
    """Linux tells what the processor can; VNNI's instructions add in 32 bits."""
    flags = Path("/proc/cpuinfo")
    if not flags.exists() or "avx2" not in flags.read_text():
        pytest.skip("not Linux on x86 with AVX2")
    assert saturates(runtime) != KERNELS_ARE_EXACT


def make_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's answers, but not those of the file's own operators, are off by a thousand."""
    real = OnnxRuntime.run
    monkeypatch.setattr(
        OnnxRuntime, "run", lambda self, inputs: [y + 1e3 for y in real(self, inputs)]
    )


def test_a_file_that_saturates_is_told(
    wide_case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On any processor: the outputs are made wrong, and the probe says that it saturates."""
    module = import_module("zaq_onnx.verify")
    path = tmp_path / "whole.onnx"
    zaq_onnx.export(wide_case.model, (wide_case.images,), path)
    make_wrong(monkeypatch)
    monkeypatch.setattr(module, "saturates", lambda name: True)
    report = zaq_onnx.verify(path, wide_case.model, wide_case.images, runtimes=("onnxruntime",))
    assert not report.ok
    assert any(ADVICE in text for text in report.problems), str(report)


@pytest.mark.slow
def test_a_file_that_cannot_saturate_is_not_advised_to_change(
    wide_case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its outputs are made wrong for another reason, on a processor that saturates."""
    module = import_module("zaq_onnx.verify")
    path = tmp_path / "reduced.onnx"
    zaq_onnx.export(wide_case.model, (wide_case.images,), path, reduce_range=True)
    make_wrong(monkeypatch)
    monkeypatch.setattr(module, "saturates", lambda name: True)
    report = zaq_onnx.verify(path, wide_case.model, wide_case.images, runtimes=("onnxruntime",))
    assert report.saturable == 0
    assert any("an output differs by 1e+03" in text for text in report.problems), str(report)
    assert not any(ADVICE in text for text in report.problems), str(report)


def test_a_file_that_may_saturate_is_remarked(
    wide_case: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing was given to run it on."""
    module = import_module("zaq_onnx.verify")
    monkeypatch.setattr(module, "saturates", lambda name: True)
    whole = zaq_onnx.verify(wide_case.whole, runtimes=("onnxruntime",))
    assert any(text.endswith(f"{WARNING}.") for text in whole.remarks)
    assert not any(
        WARNING in text
        for text in zaq_onnx.verify(wide_case.packed, runtimes=("onnxruntime",)).remarks
    )
    monkeypatch.setattr(module, "saturates", lambda name: False)
    whole = zaq_onnx.verify(wide_case.whole, runtimes=("onnxruntime",))
    assert not any(WARNING in text for text in whole.remarks)
