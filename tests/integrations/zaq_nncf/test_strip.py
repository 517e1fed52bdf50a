"""`strip` against NNCF's own, and its way through every exporter."""

import io
import warnings

import nncf
import numpy as np
import pytest
import torch
from nncf.quantization.advanced_parameters import (
    AdvancedQuantizationParameters,
    QuantizationParameters,
)
from torch import Tensor, nn

import zaq_nncf
from zaq_nncf.static import StaticActivation, StaticChannels, StaticWeight
from zaq_plugin import PWLQSpec, UniformSpec

FAST = PWLQSpec(bits=4, policy="gaussian")


@pytest.mark.parametrize("activations", [8, 4, 3])
@pytest.mark.parametrize("preset", list(nncf.QuantizationPreset), ids=str)
def test_same_as_nncfs_strip(
    net: nn.Module, images: Tensor, activations: int, preset: nncf.QuantizationPreset
) -> None:
    student = zaq_nncf.quantize(net, [images], FAST, activations=activations, preset=preset)
    before = student(images)
    mine, theirs = zaq_nncf.strip(student), nncf.strip(student, example_input=images)
    assert torch.equal(mine(images), before)
    assert torch.equal(theirs(images), before)
    assert torch.equal(student(images), before)  # copies were stripped
    for name, value in mine.named_parameters():
        assert torch.equal(value, theirs.get_parameter(name)), name


def test_weights_are_scale_times_int8(quantized: nn.Module) -> None:
    stripped = zaq_nncf.strip(quantized)
    statics = [m for m in stripped.modules() if isinstance(m, StaticWeight)]
    assert len(statics) == 5
    for static in statics:
        value = stripped.get_parameter(static.weight).detach()
        shape = [-1] + [1] * (value.dim() - 1)
        assert static.codes.dtype == torch.int8
        assert torch.equal(static.scale.view(shape) * static.codes.float(), value)
        assert max(len(row.unique()) for row in static.codes.flatten(1)) <= FAST.num_levels


def test_in_place(quantized: nn.Module, images: Tensor) -> None:
    before = quantized(images)
    assert zaq_nncf.strip(quantized, inplace=True) is quantized
    assert torch.equal(quantized(images), before)


def test_layers_left_to_nncf(net: nn.Module, images: Tensor) -> None:
    """Its arithmetic rounds differently in the last place; a value may fall to the next step."""
    # NNCF's own choice of activations, too: per channel before the depthwise convolution.
    chosen = AdvancedQuantizationParameters(
        activations_quantization_params=QuantizationParameters()
    )
    options = {"overrides": {"fc": None, "block.conv2": None}, "advanced_parameters": chosen}
    student = zaq_nncf.quantize(net, [images], FAST, **options)
    stripped = zaq_nncf.strip(student)
    assert any(isinstance(m, StaticChannels) for m in stripped.modules())
    before, after = student(images), stripped(images)
    assert (after - before).abs().max() < 0.02 * before.abs().max()
    assert len(zaq_nncf.audit(stripped).quantized) == 5
    theirs = nncf.strip(student, example_input=images)
    assert torch.allclose(stripped.fc.weight, theirs.fc.weight, atol=1e-6)
    torch.export.export(stripped, (images,))


def test_a_uniform_format(net: nn.Module, images: Tensor) -> None:
    student = zaq_nncf.quantize(net, [images], UniformSpec(4, "asymmetric", "mse"))
    assert torch.equal(zaq_nncf.strip(student)(images), student(images))


def test_levels_that_no_integer_kernel_has(net: nn.Module, images: Tensor) -> None:
    student = zaq_nncf.quantize(net, [images], PWLQSpec(bits=8, grid="float", policy="gaussian"))
    assert len(zaq_nncf.audit(student).quantized) == 5  # to evaluate or train
    with pytest.raises(ValueError, match=r"stem\.0\.weight: .* Use grid='int8' to convert"):
        zaq_nncf.strip(student)


def test_nothing_to_strip(net: nn.Module, quantized: nn.Module) -> None:
    with pytest.raises(ValueError, match="It was stripped before, or never quantized"):
        zaq_nncf.strip(zaq_nncf.strip(quantized))
    with pytest.raises(ValueError, match="this Net carries no hooks of NNCF"):
        zaq_nncf.strip(net)


def test_torch_export(quantized: nn.Module, images: Tensor) -> None:
    stripped = zaq_nncf.strip(quantized)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(stripped, (images,), dynamic_shapes=({0: batch},))
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    again = torch.export.load(stored).module()
    assert torch.equal(again(images[:3]), stripped(images[:3]))


@pytest.fixture(params=[8, 4])
def stripped(request: pytest.FixtureRequest, net: nn.Module, images: Tensor) -> nn.Module:
    return zaq_nncf.strip(zaq_nncf.quantize(net, [images], FAST, activations=request.param))


def test_onnx(stripped: nn.Module, images: Tensor) -> None:
    import onnxruntime

    program = torch.onnx.export(stripped, (images,), dynamo=True, verbose=False)
    proto = program.model_proto
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds.count("Conv") == 4
    assert "BatchNormalization" not in kinds
    assert kinds.count("DequantizeLinear") >= 5 + 5
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    out = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    expected = stripped(images).detach().numpy()
    assert np.abs(out - expected).max() <= largest_step(stripped)
    assert np.abs(out).max() > 0


def largest_step(model: nn.Module) -> float:
    return max(m.scale for m in model.modules() if isinstance(m, StaticActivation))


@pytest.mark.slow
def test_openvino(stripped: nn.Module, images: Tensor) -> None:
    import openvino

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.trace", FutureWarning)
        converted = openvino.convert_model(stripped, example_input=images)
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(converted, "CPU", hints)
    out = compiled(images.numpy())[0]
    assert np.abs(out - stripped(images).detach().numpy()).max() <= largest_step(stripped)
    kinds = [
        node.get_rt_info()["runtimePrecision"].astype(str)
        for node in compiled.get_runtime_model().get_ops()
        if node.get_rt_info()["layerType"].astype(str) in ("Convolution", "FullyConnected")
    ]
    assert len(kinds) == 5
    assert set(kinds) <= {"u8", "i8"}


class Embedded(nn.Module):
    """An embedding, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.fc = nn.Embedding(20, 8), nn.LayerNorm(8), nn.Linear(8, 4)
        nn.init.uniform_(self.embed.weight, 0.1, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.embed(x)))


class Scaled(nn.Module):
    """A positive constant and a positive parameter that an activation is multiplied by."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)
        self.gamma = nn.Parameter(torch.linspace(0.1, 1, 8))
        self.register_buffer("shift", torch.linspace(0.5, 2, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)) * self.gamma + self.shift)


def _positive(module: nn.Module) -> nn.Module:
    for norm in module.modules():
        if "Norm" in type(norm).__name__:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
    return module


POSITIVE = {
    "layer norm": lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4)),
    "group norm": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 4, 1)
    ),
    "batch norm": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)
    ),
    "instance norm": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), nn.Conv2d(8, 4, 1)
    ),
    "embedding": Embedded,
    "scaled": Scaled,
    "positive weights": lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)),
}


@pytest.mark.parametrize("name", POSITIVE)
def test_weights_without_a_negative_value(name: str) -> None:
    """NNCF gives them the integers 0 to 255."""
    import onnxruntime

    torch.manual_seed(0)
    model = _positive(POSITIVE[name]()).eval()
    if name == "positive weights":
        for parameter in model.parameters():
            parameter.data.abs_()
    is_image = any(isinstance(m, nn.Conv2d) for m in model.modules())
    x = torch.randn(8, 3, 12, 12) if is_image else torch.randn(8, 8)
    if name == "embedding":
        x = torch.randint(0, 20, (8, 5))
    overrides = {"0": None} if name == "positive weights" else None
    student = zaq_nncf.quantize(model, [x], UniformSpec(8, "symmetric"), overrides=overrides)
    stripped = zaq_nncf.strip(student)
    before, after = student(x).detach(), stripped(x).detach()
    assert _db(before, after) > 60
    program = torch.onnx.export(stripped, (x,), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert _db(after, torch.from_numpy(out)) > 25
    again = zaq_nncf.strip(student)
    again.load_state_dict(stripped.state_dict())
    assert torch.equal(again(x), after)


def _db(expected: Tensor, actual: Tensor) -> float:
    noise = (expected - actual).double().square().sum()
    return float(10 * torch.log10(expected.double().square().sum() / noise))
