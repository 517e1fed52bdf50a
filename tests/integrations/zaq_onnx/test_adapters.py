"""Runtimes behind one face; what crashes, hangs or is missing is told and takes nothing down."""

import importlib
import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from stub_runtimes import STUBS

import zaq_onnx
from zaq_onnx.adapters.adapter import least
from zaq_onnx.adapters.registry import ADAPTERS
from zaq_onnx.adapters.trials import message_of
from zaq_onnx.runtimes import noise_for
from zaq_onnx.verdict import RuntimeReport
from zaq_timm.cli import main

SUPPORT = Path(__file__).parents[2] / "support"
IN_EVERY_ENVIRONMENT = ("onnxruntime", "openvino", "openvino-convert", "onnx.reference")


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stub runtimes beside the real ones, also for other processes."""
    for name, stub in STUBS.items():
        monkeypatch.setitem(ADAPTERS, name, stub)
    path = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SUPPORT), path]))


def one_image(case: Any) -> tuple[Any, ...]:
    return (case.images[:1],)


def test_runtimes_that_are_dependencies_are_installed_and_all_say_how_to_install_them() -> None:
    assert all(ADAPTERS[name]().installed() for name in IN_EVERY_ENVIRONMENT)
    assert all("install" in adapter.install for adapter in ADAPTERS.values())
    assert [adapter.name for adapter in ADAPTERS.values()] == list(ADAPTERS)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ADAPTERS))
def test_a_packed_file_runs_or_is_refused_with_a_message(name: str, pt2e_case: Any) -> None:
    """The int8 file is right wherever it is run; a packed one is right, or does not load."""
    if ADAPTERS[name]().installed() is None:
        pytest.skip(f"{name} is not installed: {ADAPTERS[name].install}")
    for path in (pt2e_case.plain, pt2e_case.packed):
        verdict = zaq_onnx.verify(
            path, None, one_image(pt2e_case), runtimes=(name,), isolated=True, timeout=200
        )
        (report,) = verdict.runtimes
        if path == pt2e_case.packed and name not in IN_EVERY_ENVIRONMENT:
            assert report.state in ("right", "does not load")
        else:
            assert (report.state, verdict.problems) == ("right", [])
        assert (report.state == "does not load") == bool(report.message)


@pytest.mark.slow
def test_runtimes_of_their_own_process_find_what_this_one_finds(pt2e_case: Any) -> None:
    inputs = one_image(pt2e_case)
    here = zaq_onnx.verify(pt2e_case.packed, None, inputs)
    apart = zaq_onnx.verify(pt2e_case.packed, None, inputs, isolated=True)
    assert here.ok
    assert apart.ok
    for one, two in zip(here.runtimes, apart.runtimes, strict=True):
        assert (one.name, one.error, one.kernels) == (two.name, two.error, two.kernels)
        assert (one.integer_layers, one.float_layers) == (two.integer_layers, two.float_layers)


@pytest.mark.usefixtures("stubs")
def test_what_goes_wrong_is_a_problem_and_the_rest_goes_on(pt2e_case: Any) -> None:
    names = ("refuses", "crashes", "missing", "off", "exact")
    inputs = one_image(pt2e_case)
    verdict = zaq_onnx.verify(pt2e_case.plain, None, inputs, runtimes=names)
    reports = {report.name: report for report in verdict.runtimes}
    assert list(reports) == list(names)
    assert [reports[name].state for name in names] == [
        "does not load", "fails", "not installed", "wrong", "right"
    ]  # fmt: skip
    assert reports["refuses"].message == "Failed analyse: 1: no such type: UINT4"
    assert reports["crashes"].message == "the process died: SIGSEGV"
    assert reports["missing"].message == "pip install missing"
    assert reports["off"].error == pytest.approx(0.1, rel=1e-3)
    with torch.no_grad():
        answer = pt2e_case.model(*inputs).numpy()
    assert reports["off"].steps == pytest.approx(255 * 0.1 / np.ptp(answer), rel=0.05)
    assert (reports["exact"].integer_layers, reports["exact"].float_layers) == (4, 1)
    assert [text.split(":")[0] for text in verdict.problems] == ["refuses", "crashes", "off"]
    assert "missing: not installed; pip install missing" in str(verdict)


@pytest.mark.usefixtures("stubs")
def test_a_runtime_that_hangs_is_ended(pt2e_case: Any) -> None:
    verdict = zaq_onnx.verify(
        pt2e_case.plain, None, one_image(pt2e_case), runtimes=("hangs",), timeout=2
    )
    assert verdict.problems == ["hangs: does not load: not done within 2 s"]


@pytest.mark.slow
@pytest.mark.usefixtures("stubs")
def test_an_answer_counts_though_timing_it_took_too_long(pt2e_case: Any) -> None:
    inputs = one_image(pt2e_case)
    verdict = zaq_onnx.verify(
        pt2e_case.plain, None, inputs, runtimes=("slow",), seconds=600, timeout=30
    )
    (report,) = verdict.runtimes
    assert (report.state, report.milliseconds, verdict.problems) == ("right", None, [])
    assert "slow: answered, but was not timed: not done within 30 s." in verdict.remarks


@pytest.mark.usefixtures("stubs")
def test_nothing_installed_is_not_ok(pt2e_case: Any) -> None:
    verdict = zaq_onnx.verify(pt2e_case.plain, runtimes=("missing",))
    assert verdict.problems == ["nothing has run it: missing not installed."]


@pytest.mark.usefixtures("stubs")
def test_latency_is_that_of_a_run_beside_the_float_file(pt2e_case: Any, tmp_path: Path) -> None:
    (tmp_path / "float.onnx").write_bytes(pt2e_case.plain.read_bytes())
    verdict = zaq_onnx.verify(
        pt2e_case.plain,
        None,
        one_image(pt2e_case),
        runtimes=("slow",),
        float_file=tmp_path / "float.onnx",
        seconds=0.1,
    )
    (report,) = verdict.runtimes
    assert report.milliseconds is not None
    assert report.float_milliseconds is not None
    assert 200 <= report.milliseconds < report.float_milliseconds
    assert report.float_milliseconds >= 400
    assert 0.25 < (report.ratio or 0) < 0.999
    with pytest.raises(FileNotFoundError, match="there is no float file 'nowhere.onnx'"):
        zaq_onnx.verify(pt2e_case.plain, float_file="nowhere.onnx")


def test_noise_has_the_shapes_and_types_of_the_inputs(pt2e_case: Any) -> None:
    inputs = [
        helper.make_tensor_value_info("a", TensorProto.FLOAT, ["batch", 3, 5]),
        helper.make_tensor_value_info("b", TensorProto.INT64, [2]),
        helper.make_tensor_value_info("w", TensorProto.FLOAT, [1]),
    ]
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [1], [2.0])
    graph = helper.make_graph([], "g", inputs, [], [tensor])
    first, second = noise_for(helper.make_model(graph))
    assert (first.shape, first.dtype, first.std() > 0) == ((1, 3, 5), np.float32, True)
    assert (second.tolist(), second.dtype) == ([0, 0], np.int64)
    verdict = zaq_onnx.verify(pt2e_case.plain, runtimes=("onnx.reference",))
    assert verdict.ok
    assert verdict.runtimes[0].state == "right"
    assert "no inputs were given: it was run on noise." in verdict.remarks


def test_a_float_file_is_right_to_a_hundredth_of_a_step(make: Any, tmp_path: Path) -> None:
    model, images = make["network"]()
    path = tmp_path / "float.onnx"
    torch.onnx.export(
        model, (images,), path, dynamo=True, opset_version=21, external_data=False, verbose=False
    )
    verdict = zaq_onnx.verify(path, None, images, runtimes=("onnxruntime", "onnx.reference"))
    assert [report.state for report in verdict.runtimes] == ["right", "right"]
    assert all(report.steps < 0.01 for report in verdict.runtimes)
    assert verdict.problems == ["no layer has an int8 weight: nothing in this file is quantized."]


def test_the_least_of_at_least_three_runs_counts() -> None:
    calls: list[int] = []
    assert least(lambda: calls.append(1), 0.0) >= 0
    assert len(calls) == 3


def test_arithmetic_in_words() -> None:
    assert RuntimeReport("a", integer_layers=3).arithmetic == "integer"
    assert RuntimeReport("a", float_layers=3).arithmetic == "float"
    assert RuntimeReport("a", integer_layers=2, float_layers=1).arithmetic == "2 integer, 1 float"
    assert RuntimeReport("a").arithmetic == "not told"
    assert RuntimeReport("a", state="fails").arithmetic == ""


def test_messages_are_one_line() -> None:
    assert message_of(KeyError()) == "KeyError"
    assert message_of(ValueError("\n first \n second")) == "first"


def npz(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.usefixtures("stubs")
def test_the_command_prints_a_table_and_a_verdict(
    pt2e_case: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (name,) = (one.name for one in onnx.load(pt2e_case.plain).graph.input)
    archive = npz(tmp_path / "x.npz", **{name: pt2e_case.images[:1].numpy()})
    asked = ["verify", str(pt2e_case.plain), "--inputs", archive, "--seconds", "0.1", "--runtimes"]
    assert main([*asked, "exact", "missing"]) == 0
    text = capsys.readouterr().out
    assert "4 integer, 1 float" in text
    assert "not installed: missing; pip install missing" in text
    assert "OK: 5 int8 layers, 0 of them packed; right in 1 of 1 runtimes" in text
    assert main([*asked, "off", "exact", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert [one["state"] for one in report["runtimes"]] == ["wrong", "right"]
    assert report["runtimes"][1]["kernels"] == {"WholeConv": 4, "BrokenConv": 1, "Other": 7}
    assert report["runtimes"][1]["milliseconds"] > 0


def test_the_command_refuses_what_it_cannot_read(
    pt2e_case: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = npz(tmp_path / "x.npz", other=np.zeros(1))
    asked = ["verify", str(pt2e_case.plain), "--runtimes", "onnx.reference"]
    assert main([*asked, "--inputs", archive]) == 1
    assert "holds other; the inputs of the model are called" in capsys.readouterr().err
    (tmp_path / "y.npz").write_bytes(b"nothing")
    assert main([*asked, "--inputs", str(tmp_path / "y.npz")]) == 1
    assert "not an .npz file of arrays" in capsys.readouterr().err
    assert main(["verify", str(pt2e_case.plain), "--runtimes", "tensorrt"]) == 1
    assert "unknown runtime 'tensorrt'; known are onnxruntime" in capsys.readouterr().err
    for wrong, text in (
        (["nowhere.onnx"], "there is no file 'nowhere.onnx'"),
        ([str(pt2e_case.plain), "--timeout", "0"], "expected a number above 0, got '0'"),
        ([str(pt2e_case.plain), "--threads", "x"], "expected a whole number from 1 on, got 'x'"),
    ):
        with pytest.raises(SystemExit) as raised:
            main(["verify", *wrong])
        assert raised.value.code == 2
        assert text in capsys.readouterr().err


@pytest.mark.parametrize("name", list(ADAPTERS))
def test_modules_that_adapters_import_exist_where_their_runtime_does(name: str) -> None:
    if ADAPTERS[name]().installed() is None:
        pytest.skip(f"{name} is not installed: {ADAPTERS[name].install}")
    for module in ADAPTERS[name].modules:
        assert find_spec(module.partition(".")[0]) is not None
    assert importlib.import_module(ADAPTERS[name].__module__)
