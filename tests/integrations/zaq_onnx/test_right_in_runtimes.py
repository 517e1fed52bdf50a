"""Networks that runtimes got wrong: each is run by ONNX Runtime and OpenVINO against the model."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import zaq_onnx
from zaq_onnx.completion import complete, grid_of
from zaq_onnx.graph import Graph
from zaq_onnx.grids import ActivationGrid
from zaq_onnx.inspection import float_operations
from zaq_onnx.runtimes import (
    openvino_compiled,
    optimized,
    ort_session,
    run_openvino,
    run_ort,
)
from zaq_plugin.ptq import calibrate, simulate
from zaq_plugin.pwlq import UniformSpec

SPEC = UniformSpec(7, "symmetric")


def sqnr(expected: Tensor, actual: Any) -> float:
    """In dB."""
    error = (torch.as_tensor(actual) - expected).pow(2).sum()
    return float(10 * torch.log10(expected.pow(2).sum() / error.clamp(min=1e-30)))


def student_of(model: nn.Module, *batches: Any, **options: Any) -> nn.Module:
    student = simulate(model.eval(), SPEC, 8, **options)
    calibrate(student, list(batches))
    return student


@torch.no_grad()
def outputs(
    model: nn.Module, inputs: tuple[Any, ...], path: Path, calibration: Any = None
) -> list[np.ndarray]:
    """The first output of an exported model, by ONNX Runtime and by OpenVINO."""
    zaq_onnx.export(model, inputs, path, calibration=calibration, reduce_range=True)
    first = run_ort(ort_session(path), inputs)[0]
    return [first, run_openvino(openvino_compiled(path), inputs)[0]]


# ---- biases beside small scales ------------------------------------------------------------------


@pytest.mark.parametrize("gain", [1e-9, 1e-41, 0.0])
@pytest.mark.parametrize("dead", [0, 2], ids=["first", "last"])
def test_dead_channels_keep_their_bias(gain: float, dead: int, tmp_path: Path) -> None:
    """Also where the weights are denormal or zero, and where the output stays float."""
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)),
        torch.rand(4, 3, 8, 8),
    )
    with torch.no_grad():
        model[dead].weight[2] *= gain
        model[dead].bias[2] = 0.5123
    student = student_of(model, x)
    for output in outputs(student, (x,), tmp_path / "a.onnx"):
        assert sqnr(model(x).detach(), output) > 35


def test_one_scale_for_all_channels_leaves_room_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)),
        torch.rand(4, 3, 8, 8),
    )
    with torch.no_grad():
        model[0].weight *= 1e-9
    student = student_of(model, x, per_tensor=True)
    for output in outputs(student, (x,), tmp_path / "a.onnx"):
        assert sqnr(model(x).detach(), output) > 35


@pytest.mark.slow
def test_channels_with_room_are_as_they_were(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)),
        torch.rand(4, 3, 8, 8),
    )
    paths = [tmp_path / "alive.onnx", tmp_path / "dead.onnx"]
    values = []
    for path, gain in zip(paths, (1.0, 1e-9), strict=True):
        with torch.no_grad():
            model[0].weight[2] *= gain
            model[0].bias[2] = 0.5
        zaq_onnx.export(student_of(model, x), (x,), path, pack=False)
        tensors = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
        values.append((tensors["0.weight"], tensors["0.scale"]))
    others = np.arange(8) != 2
    np.testing.assert_array_equal(values[0][0][others], values[1][0][others])
    np.testing.assert_array_equal(values[0][1][others], values[1][1][others])
    assert not values[1][0][2].any()


# ---- pooling -------------------------------------------------------------------------------------


class Pooled(nn.Module):
    """Average pooling behind a signed tensor, between convolutions."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.pool(self.first(x)))


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("ceil", [True, False])
@pytest.mark.parametrize("padding", [0, 1])
def test_averages_divide_by_the_right_number(
    counts: bool, ceil: bool, padding: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    pool = nn.AvgPool2d(3, 2, padding, ceil_mode=ceil, count_include_pad=counts)
    model, x = Pooled(pool).eval(), torch.randn(4, 3, 8, 8)
    student = student_of(model, x)
    for output in outputs(student, (x,), tmp_path / "a.onnx", [x]):
        assert output.shape == model(x).shape
        assert sqnr(model(x).detach(), output) > 25


def test_padding_in_front_of_an_average_is_of_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pool = nn.Sequential(nn.ZeroPad2d((1, 0, 2, 1)), nn.AvgPool2d(3, 1))
    model, x = Pooled(pool).eval(), torch.randn(4, 3, 8, 8)
    path = tmp_path / "a.onnx"
    for output in outputs(student_of(model, x), (x,), path, [x]):
        assert sqnr(model(x).detach(), output) > 25
    assert "QLinearAveragePool" in [n.op_type for n in optimized(path).graph.node]


def test_a_divisor_of_its_own_is_refused_by_name(tmp_path: Path) -> None:
    model, x = Pooled(nn.AvgPool2d(2, divisor_override=3)), torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match="'pool': average pooling with divisor_override=3"):
        zaq_onnx.export(student_of(model, x), (x,), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_an_operator_that_onnx_lacks_is_named_with_its_layer(tmp_path: Path) -> None:
    model, x = Pooled(nn.AdaptiveMaxPool2d(3)), torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match="no counterpart of aten.adaptive_max_pool2d, which 'pool"):
        zaq_onnx.export(student_of(model, x), (x,), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_a_weight_that_is_tied_along_another_axis_is_stored_twice(tmp_path: Path) -> None:
    """The channels of a transposed convolution lie along axis 1; same axis, same integers."""
    x = torch.randn(4, 3, 9, 9)
    down, up = nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 3, 1)
    up.weight = down.weight
    again = nn.Conv2d(3, 8, 1)
    again.weight = down.weight
    student = student_of(nn.Sequential(down, nn.ReLU(), up, again).eval(), x)
    path = tmp_path / "tied.onnx"
    for output in outputs(student, (x,), path, [x]):
        assert sqnr(student(x).detach(), output) > 40
    shapes = [list(t.dims) for t in onnx.load(path).graph.initializer if len(t.dims) == 4]
    assert shapes.count([8, 3, 1, 1]) == 2


class Resized(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(x, size=(3, 5), mode="bilinear", antialias=True)


def test_antialiased_resizing_is_refused_by_name(tmp_path: Path) -> None:
    model, x = Pooled(Resized()), torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match="'pool': OpenVINO resizes without antialiasing"):
        zaq_onnx.export(student_of(model, x), (x,), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bits", [8, 4])
def test_maxima_of_a_stem_are_integers(bits: int, tmp_path: Path) -> None:
    """The tensor in front of the pool takes the grid behind it, which rounds no second time."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 4, 1)]
    model, x = nn.Sequential(*layers).eval(), torch.randn(4, 3, 9, 9)
    student = simulate(model, SPEC, bits)
    calibrate(student, [x])
    path = tmp_path / "a.onnx"
    for output in outputs(student, (x,), path, [x]):
        assert sqnr(student(x).detach(), output) > 40
    kinds = [n.op_type for n in optimized(path).graph.node]
    assert "NhwcMaxPool" in kinds
    assert kinds.count("QuantizeLinear") == 1


class Stem(nn.Module):
    """The beginning of a residual network: what is pooled is convolved, and added."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last, self.pool = nn.Linear(8, 4), nn.MaxPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.first(x).relu())
        return self.last((self.second(x) + x).relu().mean((2, 3)))


def test_a_pool_in_front_of_a_sum_is_of_integers(tmp_path: Path) -> None:
    """The convolution's grid behind the pool serves the pool and the sum, too."""
    torch.manual_seed(0)
    model, x, path = Stem().eval(), torch.randn(4, 3, 9, 9), tmp_path / "a.onnx"
    for output in outputs(student_of(model, x), (x,), path, [x]):
        assert sqnr(model(x).detach(), output) > 30
    inside = optimized(path)
    kinds = [n.op_type for n in inside.graph.node]
    assert "NhwcMaxPool" in kinds
    assert "QLinearAdd" in kinds
    assert float_operations(Graph(inside)) == []


# ---- grids ---------------------------------------------------------------------------------------


class Coarse(nn.Module):
    """A coarse grid behind a fine one; 1.7 and 0.1 have no ties."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.fine, self.coarse = ActivationGrid(0.1, 128), ActivationGrid(1.7, 8)
        self.between = between
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.coarse(self.between(self.fine(x)))
        return x, self.conv(x)


@pytest.mark.parametrize("between", [nn.Identity(), nn.MaxPool2d(2), nn.ZeroPad2d(1)])
def test_a_coarse_grid_behind_a_fine_one_survives(between: nn.Module, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Coarse(between), torch.randn(4, 3, 6, 6) * 8
    student = student_of(model, x)
    for output in outputs(student, (x,), tmp_path / "a.onnx"):
        np.testing.assert_allclose(output, student(x)[0].detach(), atol=1e-5)


def sum_of_sums() -> Graph:
    """``(x + z) + x`` on whole numbers, whose inner sum has no grid yet."""
    helper = onnx.helper
    values = {"one": np.array(1, np.float32), "zero": np.array(127, np.uint8)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["d"]),
        helper.make_node("QuantizeLinear", ["z", "one", "zero"], ["r"]),
        helper.make_node("DequantizeLinear", ["r", "one", "zero"], ["e"]),
        helper.make_node("Add", ["d", "e"], ["a"]),
        helper.make_node("Add", ["a", "d"], ["y"]),
    ]
    infos = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 4, 8, 8]) for n in "xzy"]
    tensors = [onnx.numpy_helper.from_array(v, k) for k, v in values.items()]
    graph = helper.make_graph(nodes, "g", infos[:2], infos[2:], tensors)
    opsets = [helper.make_opsetid("", 19)]
    return Graph(helper.make_model(graph, opset_imports=opsets, ir_version=9))


@pytest.mark.parametrize("odd", [True, False])
def test_halves_are_rounded_to_one_side(odd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A range of 510 steps from -254: by the usual formula its step is 2, its zero point 127."""
    if odd:
        monkeypatch.setattr("zaq_onnx.completion.grid_of", lambda low, high: (2.0, 127))
    both = np.random.default_rng(0).integers(-60, 60, (2, 1, 4, 8, 8)).astype(np.float32)
    both[:, 0, 0, 0, :2] = -127, 128
    graph = sum_of_sums()
    assert complete(graph, [tuple(both)]) == ["a"]
    model = graph.to_model()
    plain = run_ort(ort_session(model, optimize=False), both)[0]
    runs = [run_ort(ort_session(model), both), run_openvino(openvino_compiled(model), both)]
    same = [np.abs(output[0] - plain).max() < 0.01 for output in runs]
    assert all(same) is not odd


@pytest.mark.parametrize(("low", "high"), [(0, 5), (-3, 0), (-254, 256), (-1e-9, 1), (0, 0)])
def test_even_zero_points_hold_the_range(low: float, high: float) -> None:
    scale, zero = grid_of(low, high)
    assert zero % 2 == 0
    assert -zero * scale <= low * (1 - 1e-9)
    assert (255 - zero) * scale >= high * (1 - 1e-9)
    assert scale <= max(1.02 * (high - low) / 255, 1e-8)


# ---- inputs, weights, calls ----------------------------------------------------------------------


class Standardised(nn.Module):
    """No layer of torch, so that simulation does not look into it."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel) / 5)
        self.bias = nn.Parameter(torch.randn(outputs) / 5)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, (self.weight - mean) * 1.5, self.bias)


def test_computed_weights_are_told_and_stay_float(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Standardised(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    x, path = torch.randn(4, 3, 8, 8), tmp_path / "a.onnx"
    student = student_of(model, x)
    exported = zaq_onnx.export(student, (x,), path, reduce_range=True)
    record = exported.layers["0"]
    assert not record.quantized
    assert record.reason == "its weight is computed from constants, in float"
    assert record.numel == model[0].weight.numel()
    answers = [
        run_ort(ort_session(path), (x,))[0],
        run_openvino(openvino_compiled(path), (x,))[0],
    ]
    assert all(sqnr(student(x).detach(), y) > 35 for y in answers)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.grid = nn.Conv2d(3, 8, 1), nn.Linear(2, 8)

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        return self.conv(x) + self.grid(grid).permute(2, 0, 1)


@pytest.mark.slow
def test_several_inputs_calibrate_by_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x, grid = Named().eval(), torch.randn(4, 3, 6, 5), torch.rand(6, 5, 2)
    batch = {"x": x, "grid": grid}
    student = student_of(model, batch)
    for output in outputs(student, (x, grid), tmp_path / "a.onnx", [batch]):
        assert sqnr(model(x, grid).detach(), output) > 25
    wrong = [{"image": x, "grid": grid}]
    with pytest.raises(ValueError, match="takes inputs called x, grid; got image, grid"):
        zaq_onnx.export(student, (x, grid), tmp_path / "b.onnx", calibration=wrong)


def test_images_without_a_batch_and_nested_inputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)),
        torch.randn(3, 8, 8),
    )
    for output in outputs(student_of(model, x), (x,), tmp_path / "a.onnx", [x]):
        assert sqnr(model(x).detach(), output) > 22

    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, images: dict[str, Any]) -> Tensor:
            return self.conv(images["a"]) + self.conv(images["b"][0])

    nested, a, b = Nested().eval(), torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    student = student_of(nested, {"images": {"a": a, "b": [b]}})
    path = tmp_path / "b.onnx"
    zaq_onnx.export(student, ({"a": a, "b": [b]},), path, reduce_range=True)
    expected = student({"a": a, "b": [b]}).detach()
    assert sqnr(expected, run_ort(ort_session(path), (a, b))[0]) > 40


class Calls(nn.Module):
    """One convolution, called on different ranges, and sums and products with numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
        self.head = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.conv(x) * 0.02)
        return self.head(self.conv(x * -3 + 0.5) + 9)


@pytest.mark.slow
@pytest.mark.parametrize("reference", [False, True])
def test_fx_models_may_call_a_module_often(reference: bool, tmp_path: Path) -> None:
    import zaq_fx

    torch.manual_seed(0)
    model, x = Calls().eval(), torch.randn(4, 3, 6, 6)
    prepared = zaq_fx.prepare(model, (x,), SPEC, 8)
    converted = zaq_fx.convert(zaq_fx.calibrate(prepared, [x]), reference=reference)
    path = tmp_path / "a.onnx"
    zaq_onnx.export(converted, (x,), path, reduce_range=True)
    report = zaq_onnx.verify(path, converted, x)
    assert report.ok, str(report)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("factor", [0.02, -0.5, 3.0, 0.0])
def test_products_with_numbers_have_torchs_grid(factor: float) -> None:
    from zaq_onnx.grids import product_grid

    x = torch.quantize_per_tensor(torch.randn(50), 0.02, 120, torch.quint8)
    y = torch.ops.quantized.mul(x, factor)
    assert product_grid((0.02, 120), factor) == pytest.approx((y.q_scale(), y.q_zero_point()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("term", [0.0, 0.5, -0.013, 10.0, -10.0])
def test_sums_with_numbers_have_torchs_grid(term: float) -> None:
    from zaq_onnx.grids import sum_grid

    x = torch.quantize_per_tensor(torch.randn(50), 0.02, 120, torch.quint8)
    y = torch.ops.quantized.add(x, term)
    added, grid = sum_grid((0.02, 120), term)
    assert grid == pytest.approx((y.q_scale(), y.q_zero_point()))
    again = torch.quantize_per_tensor(x.dequantize() + added, *grid, torch.quint8)
    assert (again.dequantize() - y.dequantize()).abs().max() <= 1.001 * grid[0]
