"""Files for WebAssembly: depthwise layers multiply in float, all others in integers."""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import zaq_onnx
from zaq_onnx.comparison import compare_weights
from zaq_onnx.files import load, unpack_model
from zaq_onnx.graph import Graph, attribute
from zaq_onnx.runtimes import optimized, ort_session, run_ort
from zaq_onnx.weights import weights_of
from zaq_plugin.ptq import calibrate, simulate
from zaq_plugin.pwlq import UniformSpec

SPEC = UniformSpec(7, "symmetric")
REASON = 'WebAssembly has no fast int8 depthwise convolution (target="wasm")'


def kinds(path: Path) -> list[tuple[str, int]]:
    """Operator and groups of what ONNX Runtime runs."""
    nodes = optimized(path).graph.node
    return [(n.op_type, attribute(n, "group", 1)) for n in nodes if "Conv" in n.op_type]


@pytest.fixture(
    scope="module",
    params=["pt2e", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fx", "simulated"))],
)
def float_case(request: pytest.FixtureRequest, case_of: Any, tmp_path_factory: Any) -> Any:
    """A model and images, its file for any target, its file for WebAssembly, what export said."""
    case = case_of(request.param)
    path = tmp_path_factory.mktemp("wasm") / f"{request.param}.onnx"
    ranges = [case.images] if request.param == "simulated" else None
    exported = zaq_onnx.export(
        case.model, (case.images,), path, target="wasm", calibration=ranges, reduce_range=True
    )
    return case, path, exported


def test_depthwise_layers_are_float_and_the_rest_is_integer(float_case: Any) -> None:
    case, path, _ = float_case
    grouped = [kind for kind, groups in kinds(case.packed) if groups > 1]
    assert grouped == ["QLinearConv"]
    pairs = kinds(path)
    assert [kind for kind, groups in pairs if groups > 1] == ["Conv"]
    assert [kind for kind, groups in pairs if groups == 1] == ["QLinearConv"] * 3
    gemms = [n.op_type for n in optimized(path).graph.node if "Gemm" in n.op_type]
    assert gemms == ["QGemm"]


def test_the_float_weight_holds_the_levels_of_the_model(float_case: Any) -> None:
    case, path, _ = float_case
    graph = Graph(load(path))
    integers = {w.name: w for w in weights_of(Graph(load(case.packed)))}
    weight = integers["body.weight"]
    plain = unpack_model(load(case.packed))
    scale = Graph(plain).array(weight.node.input[1])
    assert scale is not None
    value = graph.array("body.weight")
    assert value is not None
    assert value.dtype == np.float32
    np.testing.assert_array_equal(value, weight.integers * scale.reshape(-1, 1, 1, 1))


def test_answers_are_those_of_the_model(float_case: Any) -> None:
    """No further than the file for any target: both multiply the same levels by the same inputs."""
    case, path, _ = float_case
    a, b = (run_ort(ort_session(p), (case.images,))[0] for p in (case.packed, path))
    step = np.ptp(a) / 255
    assert np.abs(a - b).max() <= 2 * step
    assert (a.argmax(1) == b.argmax(1)).mean() >= 7 / 8
    verdict = zaq_onnx.verify(path, case.model, case.images)
    assert verdict.ok, str(verdict)
    assert f"1 depthwise layers are float: {REASON}." in verdict.remarks
    assert not any("because their input or output" in remark for remark in verdict.remarks)


def test_the_records_say_which_layers_are_float_and_why(float_case: Any) -> None:
    _, _, exported = float_case
    reasons = {r.name: r.reason for r in exported.layers if not r.quantized}
    assert reasons == {"body": REASON}
    assert len(exported.layers.quantized) == 4


@pytest.mark.slow
def test_verify_compares_the_float_levels(float_case: Any) -> None:
    case, path, _ = float_case
    graph = Graph(unpack_model(load(path)))
    reduced = True
    assert compare_weights(graph, case.model, (case.images,), reduced) == []
    value = graph.array("body.weight")
    assert value is not None
    graph.drop_constant("body.weight")
    graph.add_constant("body.weight", value * np.float32(1.01))
    (problem,) = compare_weights(graph, case.model, (case.images,), reduced)
    assert problem == "'body.weight' is float, and differs from the model's levels."


@pytest.mark.slow
def test_without_care_onnx_runtime_rounds_the_float_weight(
    pt2e_case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why a Max follows: else the layer is one of integers again, with other levels."""
    targets, exporting = import_module("zaq_onnx.targets"), import_module("zaq_onnx.export")
    monkeypatch.setattr(targets, "keep_float", lambda graph, node: None)
    monkeypatch.setattr(exporting, "refuse_float_weights", lambda graph: None)
    case, path = pt2e_case, tmp_path / "a.onnx"
    zaq_onnx.export(case.model, (case.images,), path, target="wasm", check=False, reduce_range=True)
    assert [kind for kind, groups in kinds(path) if groups > 1] == ["QLinearConv"]
    report = zaq_onnx.verify(path, case.model, case.images, runtimes=("onnxruntime",))
    assert any("requantized a float weight" in problem for problem in report.problems)


class Pooled(nn.Module):
    """A depthwise layer whose output is limited and pooled before it is quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.pool, self.relu = nn.MaxPool2d(2), nn.ReLU6()
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.pool(self.relu(self.depthwise(torch.relu(self.first(x))))))


@pytest.mark.slow
@torch.no_grad()
def test_grids_behind_pooling_do_not_bring_integers_back(tmp_path: Path) -> None:
    """ONNX Runtime carries a grid over pooling to the layer in front."""
    torch.manual_seed(0)
    model, x = Pooled().eval(), torch.randn(8, 3, 12, 12)
    student = simulate(model, SPEC, 8)
    calibrate(student, [x])
    any_, wasm = tmp_path / "any.onnx", tmp_path / "wasm.onnx"
    zaq_onnx.export(student, (x,), any_, calibration=[x])
    zaq_onnx.export(student, (x,), wasm, calibration=[x], target="wasm")
    assert ("QLinearConv", 8) in kinds(any_)
    assert ("Conv", 8) in kinds(wasm)
    dense = [[kind for kind, groups in kinds(p) if groups == 1] for p in (any_, wasm)]
    assert dense[0] == dense[1]
    assert "QLinearConv" in dense[1]
    (output,) = run_ort(ort_session(wasm), (x,))
    expected = student(x).numpy()
    assert np.abs(output - expected).max() <= np.ptp(expected) / 40


@pytest.mark.slow
def test_a_file_without_depthwise_layers_is_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    x = torch.rand(4, 3, 8, 8)
    student = simulate(model, SPEC, 8)
    calibrate(student, [x])
    paths = [tmp_path / "any.onnx", tmp_path / "wasm.onnx"]
    for path, target in zip(paths, ("any", "wasm"), strict=True):
        zaq_onnx.export(student, (x,), path, target=target)
    first, second = (onnx.load(path).graph for path in paths)
    assert first == second


def test_a_wrong_target_is_refused_by_name(pt2e_case: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    with pytest.raises(ValueError, match=r"target must be one of 'any', 'wasm'; got 'web'\."):
        zaq_onnx.export(pt2e_case.model, (pt2e_case.images,), path, target="web")
    assert not path.exists()
