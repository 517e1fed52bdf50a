"""`verify` says OK of what is right, and names what is wrong."""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

import zaq_onnx
from zaq_onnx.__main__ import main
from zaq_onnx.comparison import meets_grid, moves
from zaq_onnx.graph import Graph
from zaq_onnx.inspection import float_layers, float_operations, integer_layers, strangers
from zaq_onnx.runtimes import optimized
from zaq_plugin import PWLQSpec, calibrate, simulate


def without_manifest(path: Path) -> ModelProto:
    model = onnx.load(path)
    del model.metadata_props[:]
    return model


def test_a_good_file_is_ok_and_the_kernels_are_counted(pt2e_case: Any) -> None:
    report = zaq_onnx.verify(pt2e_case.packed, pt2e_case.model, pt2e_case.images)
    assert report.ok
    assert report.integer_only
    assert report.require() is report
    ort, openvino = report.runtimes
    assert ort.kernels["QLinearConv"] == 4
    assert ort.kernels["QGemm"] == 1
    assert ort.kernels["QLinearAdd"] == 1
    assert (ort.integer_layers, ort.float_layers) == (5, 0)
    assert openvino.integer_layers + openvino.float_layers == 5
    text = str(report)
    assert "OK. 5 int8 layers" in text
    assert "4 QLinearConv" in text
    assert "inference: integer-only" in text


class Scaled(nn.Module):
    """A network that takes its input in another unit, as a preprocessing inside a model does."""

    def __init__(self, network: nn.Module, unit: float) -> None:
        super().__init__()
        self.network, self.unit = network, unit

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x / self.unit)


@pytest.mark.slow
def test_an_input_that_meets_its_grid_later_may_be_off_by_a_step_too(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("zaq_onnx.verify"), "output_steps", lambda graph: [])
    images = torch.randn(8, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    allowed = []
    for unit in (1.0, 64.0):
        model = make["simulated"]() if unit == 1 else Scaled(make["simulated"](), unit).eval()
        path = tmp_path / f"{unit}.onnx"
        zaq_onnx.export(model, (unit * images,), path)
        report = zaq_onnx.verify(path, model, unit * images, runtimes=("onnxruntime",))
        allowed.append(report.tolerance)
    assert allowed[0] > 0
    assert allowed[1] == pytest.approx(allowed[0], rel=0.6)


class Masked(nn.Module):
    """A second input that no layer multiplies and no grid rounds."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.network(x) + mask


def test_an_input_that_meets_no_grid_may_not_be_off_at_all(make: Any, tmp_path: Path) -> None:
    images = torch.randn(8, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(8, 10).index_fill(1, torch.tensor([3]), -1e30)
    path = tmp_path / "masked.onnx"
    zaq_onnx.export(Masked(make["simulated"]()).eval(), (images, mask), path)
    graph = Graph(onnx.load(path))
    first, second = graph.inputs
    assert meets_grid(graph, first)
    assert not meets_grid(graph, second)
    batch = (images, mask)
    assert moves(graph, lambda inputs: [np.asarray(inputs[1])], batch) == 0
    assert moves(graph, lambda inputs: [np.asarray(inputs[0])], batch) > 0
    endless = torch.full_like(images, torch.inf)
    endless[0] = -torch.inf
    assert moves(graph, lambda inputs: [np.zeros(1)], (endless, mask)) == 0


@pytest.mark.slow
def test_another_model_is_not_ok(pt2e_case: Any, make: Any) -> None:
    """The same network with four bits: other integers, in every layer."""
    from zaq_plugin.pwlq import PWLQSpec

    other = make["pt2e"](8, PWLQSpec(bits=4))
    runtimes = ("onnxruntime",)
    report = zaq_onnx.verify(pt2e_case.packed, other, pt2e_case.images, runtimes=runtimes)
    assert not report.ok
    assert sum("differ from the model's" in text for text in report.problems) >= 4
    with pytest.raises(ValueError, match="NOT OK"):
        report.require()


def test_other_outputs_are_not_ok(pt2e_case: Any, tmp_path: Path) -> None:
    """A bias that is off, in a file whose manifest was taken away: only running it tells."""
    model = without_manifest(pt2e_case.whole)
    (bias,) = [t for t in model.graph.initializer if t.name == "wide.bias"]
    value = numpy_helper.to_array(bias) + 1
    bias.CopyFrom(numpy_helper.from_array(value.astype(np.float32), bias.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    report = zaq_onnx.verify(tmp_path / "wrong.onnx", pt2e_case.model, pt2e_case.images)
    assert [text.split(":")[0] for text in report.problems] == ["onnxruntime", "openvino"]
    assert "an output differs by" in report.problems[0]


def requantized(path: Path, target: Path) -> Path:
    """The trap: a layer's weight as a float constant, between quantized activations."""
    model = without_manifest(path)
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] == "short.weight":
            scale = values[node.input[1]].reshape(-1, 1, 1, 1)
            # A codebook in float is on no int8 grid of its own.
            floats = (values["short.weight"] * scale * 1.003 + 1e-3).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(floats, node.output[0]))
            model.graph.node.remove(node)
            break
    onnx.save(model, target)
    return target


def test_silent_requantisation_by_onnx_runtime_is_caught(pt2e_case: Any, tmp_path: Path) -> None:
    path = requantized(pt2e_case.plain, tmp_path / "float.onnx")
    inside = Graph(optimized(path))
    assert len(integer_layers(inside)) == 5, "ONNX Runtime runs the float weight on an int8 kernel"
    assert len(strangers(inside, onnx.load(path))) == 1
    report = zaq_onnx.verify(path, runtimes=("onnxruntime",))
    assert any("requantizes it silently" in text for text in report.problems)
    assert any("the runtime has requantized a float weight" in text for text in report.problems)


@pytest.mark.slow
def test_float_layers_are_counted_and_remarked(make: Any, tmp_path: Path) -> None:
    """Simulation leaves sums in float, and with them the layers in front."""
    student, (_, images) = make["simulated"](), make["network"]()
    path = tmp_path / "s.onnx"
    zaq_onnx.export(student, (images,), path, reduce_range=True)
    report = zaq_onnx.verify(path, student, images, runtimes=("onnxruntime",))
    assert report.ok
    assert not report.integer_only
    assert report.runtimes[0].float_layers == 2
    assert any("2 layers run in float under ONNX Runtime" in text for text in report.remarks)
    inside = Graph(optimized(path))
    assert len(float_layers(inside)) == 2
    assert any(name.startswith("FusedConv") for name in float_operations(inside))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda x: x.double(), "; got float64 of shape (8, 3, 14, 14); pass float32 values, norm"),
        (lambda x: x[:, :1], "; got float32 of shape (8, 1, 14, 14); pass samples of that shape."),
        (lambda x: x[0], "; got float32 of shape (3, 14, 14); pass samples of that shape."),
    ],
)
def test_inputs_that_a_file_does_not_take_are_told(pt2e_case: Any, change: Any, text: str) -> None:
    with pytest.raises(ValueError, match=r"input '\w+' is float32 of shape \(") as caught:
        zaq_onnx.verify(pt2e_case.plain, None, change(pt2e_case.images))
    assert ", 3, 14, 14)" + text in str(caught.value)


class Residual(nn.Module):
    """The first convolution's output is read by a layer and by a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.pool, self.last = nn.AdaptiveAvgPool2d(1), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.pool(torch.relu(x + self.second(x))).flatten(1))


@pytest.mark.parametrize("bits", [4, 8])
def test_what_keeps_layers_in_float_is_named(tmp_path: Path, bits: int) -> None:
    """A narrow grid for a layer beside one of 8 bits for a sum: no calibration mends that."""
    torch.manual_seed(0)
    student, images = simulate(Residual().eval(), PWLQSpec(4), bits), torch.randn(4, 3, 8, 8)
    calibrate(student, [images])

    def remark(path: Path, **options: Any) -> tuple[int, str]:
        zaq_onnx.export(student, (images,), path, reduce_range=True, **options)
        report = zaq_onnx.verify(path, student, images, runtimes=("onnxruntime",))
        found = [text for text in report.remarks if "run in float under ONNX Runtime" in text]
        return report.runtimes[0].float_layers, "".join(found)

    without, text = remark(tmp_path / "plain.onnx")
    given = "because their input or output is not quantized; export(..., calibration=batches) gives"
    assert f"{without} layers run in float under ONNX Runtime: {without} {given}" in text
    assert ("helps where no sum reads what a layer of fewer than 8 bits" in text) == (bits < 8)
    left, text = remark(tmp_path / "completed.onnx", calibration=[images])
    if bits == 8:
        assert (left, text) == (0, "")
        return
    assert left == 1
    assert "run in float under ONNX Runtime: 1 because their output is on two grids" in text
    assert text.endswith("with 8-bit activations the two are one.")
    assert "calibration" not in text


def test_ranges_that_were_added_are_told(case_of: Any) -> None:
    case = case_of("simulated")
    report = zaq_onnx.verify(case.packed, case.model, case.images, runtimes=("onnxruntime",))
    assert report.ok
    assert report.integer_only
    words = "tensors that were float in the model have 8-bit ranges here, which moves its output by"
    assert report.remarks[0].startswith(f"{words} up to")
    assert not any("coarser grids" in remark for remark in report.remarks)  # none was too large


def test_damaged_files_are_not_ok(pt2e_case: Any, tmp_path: Path) -> None:
    path = tmp_path / "t.onnx"
    path.write_bytes(pt2e_case.packed.read_bytes()[:5000])
    report = zaq_onnx.verify(path)
    assert not report.ok
    assert "not an ONNX model, or damaged" in report.problems[0]


def test_arguments_are_checked(pt2e_case: Any) -> None:
    with pytest.raises(ValueError, match="unknown runtime 'tensorrt'; known are onnxruntime"):
        zaq_onnx.verify(pt2e_case.packed, runtimes=("tensorrt",))
    with pytest.raises(ValueError, match="a model needs inputs"):
        zaq_onnx.verify(pt2e_case.packed, pt2e_case.model)
    with pytest.raises(FileNotFoundError, match=r"nowhere.onnx: there is no such file; zaq_onnx"):
        zaq_onnx.verify("nowhere.onnx")


def test_the_command(pt2e_case: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(pt2e_case.packed)]) == 0
    text = capsys.readouterr().out
    size = pt2e_case.packed.stat().st_size
    assert "MAC bits  Stored bits" in text
    assert f"{size:,} bytes" in text
    assert "PWLQ 3b MAC/4b stored (joint)" in text
    assert main(["unpack", str(pt2e_case.packed), str(tmp_path / "u.onnx")]) == 0
    assert main(["pack", str(tmp_path / "u.onnx"), str(tmp_path / "p.onnx")]) == 0
    assert (tmp_path / "p.onnx").read_bytes() == pt2e_case.packed.read_bytes()
    assert main(["verify", str(tmp_path / "p.onnx")]) == 0
    assert "OK" in capsys.readouterr().out
    (tmp_path / "p.onnx").write_bytes(b"damaged")
    for command in ("info", "verify"):
        assert main([command, str(tmp_path / "p.onnx")]) == 1
    assert "zaq_onnx: " in capsys.readouterr().err


def test_info_counts_what_the_file_holds(pt2e_case: Any) -> None:
    details = zaq_onnx.info(pt2e_case.packed)
    model = onnx.load(pt2e_case.packed)
    sizes = {t.name: len(t.raw_data) for t in model.graph.initializer}
    wide = next(layer for layer in details.layers if layer.name == "wide")
    words = ("u8", "u4", "u2", "u1", "book", "curves", "where", "what")
    own = sum(size for name, size in sizes.items() if name.rpartition(".")[2] in words)
    assert [layer.name for layer in details.layers if layer.stored_bits < 8] == ["wide"]
    assert wide.bytes == own
    assert details.bytes == pt2e_case.packed.stat().st_size
    assert details.int8_bytes == pt2e_case.plain.stat().st_size
    assert details.manifest["source"] == "PT2E-converted"
    assert torch.__version__.startswith(details.manifest["torch"].split("+")[0])
