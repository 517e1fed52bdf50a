"""Rewriting a model leaves its function and the user's copy alone, and reaches every weight."""

import copy

import pytest
import timm
import torch
from fx_oracle import assert_right, prepared, sqnr
from networks import perturb
from torch import nn
from torch.nn import functional

import zaq_fx
from zaq_fx.layers import layers_of
from zaq_fx.surgery import functional_to_modules, unwrap_norm_activations
from zaq_plugin.ptq import fold_batch_norm
from zaq_plugin.pwlq import PWLQSpec, UniformSpec, quantize

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Functional(nn.Module):
    """Parameters used by functional calls in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 3, 3, 3))
        self.bias = nn.Parameter(torch.randn(6))
        self.inner = Own(6, 8, 3, groups=2, padding=1)
        self.matrix = nn.Parameter(torch.randn(5, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.conv2d(x, self.kernel, bias=self.bias, stride=2, padding=1)
        x = self.inner(x.relu()).mean((2, 3))
        return functional.linear(x, self.matrix) + functional.linear(x, self.matrix)


class Own(nn.Conv2d):
    """A subclass that the tracer enters, because it is not torch's."""


class Standardised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)
        return torch.conv2d(x, w, None, (1, 1), (1, 1))


class Dynamic(nn.Module):
    """A kernel computed from the input: nobody can quantize that beforehand."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3 * 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = self.fc(x.mean((2, 3)).mean(0, keepdim=True)).reshape(3, 3, 1, 1)
        return functional.conv2d(x, w)


def test_functional_weights_become_modules():
    torch.manual_seed(0)
    model = Functional().eval()
    before = copy.deepcopy(model.state_dict())
    ready = zaq_fx.prepare_model(model)
    assert torch.equal(ready(X), model(X))
    names = {n: type(m) for n, m in ready.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert names == {
        "conv2d": nn.Conv2d,
        "inner": nn.Conv2d,
        "linear": nn.Linear,
        "linear_1": nn.Linear,
    }
    assert ready.linear.weight is ready.linear_1.weight
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_functional_weights_are_quantized_bit_for_bit():
    torch.manual_seed(0)
    model = Functional().eval()
    spec = PWLQSpec(bits=4)
    prepared = zaq_fx.prepare(model, (X,), spec)
    zaq_fx.calibrate(prepared, [X], bias_correction=False)
    converted = zaq_fx.convert(prepared)
    assert len(zaq_fx.audit(converted).quantized) == 4
    stored = zaq_fx.integer_weight(converted.conv2d).dequantize()
    assert torch.equal(stored, quantize(model.kernel.detach(), spec).dequantize())


def test_inplace_and_copy():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert zaq_fx.prepare_model(model, inplace=True) is model
    assert zaq_fx.prepare_model(model) is not model


def test_standardised_weights_are_computed_once():
    torch.manual_seed(0)
    model = Standardised().eval()
    ready = zaq_fx.prepare_model(model)
    torch.testing.assert_close(ready(X), model(X))
    assert [type(m) for m in ready.children()] == [nn.Conv2d]
    training = functional_to_modules(Standardised().train())
    assert list(training.children()) == []  # training would cut the weight from its parameter


def test_weights_computed_from_the_input_are_left_and_listed():
    model = Dynamic().eval()
    prepared = zaq_fx.prepare(model, (X,))
    zaq_fx.calibrate(prepared, [X])
    converted = zaq_fx.convert(prepared)
    assert converted(X).shape == model(X).shape
    audit = zaq_fx.audit(converted)
    assert [r.name for r in audit.quantized] == ["fc"]
    assert [r.kind for r in audit.skipped] == ["functional conv2d"]
    assert "computed from the input" in audit.skipped[0].reason


@pytest.mark.slow
def test_norm_activations_are_unwrapped_and_fold():
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv2_100", num_classes=4).eval()
    reference = copy.deepcopy(model)
    fused = [n for n, m in model.named_modules() if type(m).__name__ == "BatchNormAct2d"]
    assert unwrap_norm_activations(model) == fused
    assert len(fused) == 52
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(x), reference(x))
    assert next(model.bn1.children()).weight is model.bn1.norm.weight
    prepared = zaq_fx.prepare(reference, (x,))
    assert not any("batch_norm" in str(n.target) for n in prepared.graph.nodes)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in prepared.modules())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_refused_with_the_way_out(dtype):
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).to(dtype)
    with pytest.raises(ValueError, match=rf"parameter '0.weight' is {dtype}.*model.float\(\)"):
        zaq_fx.prepare(model, (X,))


def test_other_precisions_are_refused_in_the_stock_flow_too():
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    backend = zaq_fx.pwlq_backend_config()
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).eval().bfloat16()
    prepared = prepare_fx(
        model, zaq_fx.pwlq_qconfig_mapping(), (X.bfloat16(),), backend_config=backend
    )
    prepared(X.bfloat16())
    with pytest.raises(ValueError, match=r"Conv2d has torch.bfloat16 weights.*model.float\(\)"):
        convert_fx(prepared, backend_config=backend)


def test_what_cannot_be_traced_says_so():
    class Control(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x) if x.sum() > 0 else x

    with pytest.raises(ValueError, match="cannot trace Control.*zaq_pt2e"):
        zaq_fx.prepare(Control(), (X,))
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module; got str"):
        zaq_fx.prepare("resnet18", (X,))


class Chain(nn.Module):
    """A layer under test between two convolutions."""

    def __init__(self, *layers: nn.Module, channels: int = 8) -> None:
        super().__init__()
        self.stem, self.relu = nn.Conv2d(3, channels, 1), nn.ReLU()
        self.layers = nn.Sequential(*layers)
        self.out = nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.layers(self.relu(self.stem(x))))


MANY = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))
PADDINGS = [
    ("same", "zeros", 3, 1),
    ("same", "zeros", 2, 1),
    ("same", "zeros", (4, 3), (1, 2)),
    ("valid", "zeros", 3, 1),
    ("same", "reflect", 3, 1),
    ("same", "circular", 2, 1),
    ((1, 2), "circular", 3, 1),
    (1, "replicate", 3, 1),
    (1, "reflect", 3, 1),
]


@pytest.mark.parametrize("qat", [False, True])
@pytest.mark.parametrize(("padding", "mode", "kernel", "dilation"), PADDINGS)
def test_padding_of_every_kind(padding, mode, kernel, dilation, qat):
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, kernel, padding=padding, padding_mode=mode, dilation=dilation)
    model = perturb(Chain(conv, nn.BatchNorm2d(8), nn.ReLU())).eval()
    int8_model = assert_right(model, MANY, qat=qat)
    assert [r.name for r in zaq_fx.audit(int8_model).quantized] == ["stem", "layers.0", "out"]
    assert (conv.padding, conv.padding_mode) == (
        padding if isinstance(padding, str | tuple) else (1, 1),
        mode,
    )


TRANSPOSED = {
    "plain": (8, 8, 1),
    "grouped": (8, 8, 2),
    "depthwise": (8, 8, 8),
    "fewer": (16, 8, 1),
    "more": (4, 8, 1),
    "more in groups": (4, 8, 2),
}


@pytest.mark.parametrize("qat", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolutions_with_batch_norm(name, relu, qat):
    inputs, outputs, groups = TRANSPOSED[name]
    torch.manual_seed(0)
    up = nn.ConvTranspose2d(inputs, outputs, 3, 2, 1, 1, groups=groups)
    layers = [up, nn.BatchNorm2d(outputs), *([nn.ReLU()] if relu else [])]
    model = perturb(Chain(*layers, channels=inputs)).eval()
    int8_model = assert_right(model, MANY, qat=qat)
    assert not any("norm" in type(m).__name__.lower() for m in int8_model.modules())
    assert len(zaq_fx.audit(int8_model).quantized) == 3


def test_batch_norms_in_training_behind_transposed_convolutions_stay_float():
    torch.manual_seed(0)
    model = Chain(nn.ConvTranspose2d(8, 8, 2, 2), nn.BatchNorm2d(8)).train()
    ready = prepared(model, MANY, qat=True)
    before = ready.layers.get_submodule("1").get_submodule("0").running_mean.clone()
    ready.train()
    ready(MANY).square().mean().backward()
    assert not torch.equal(ready.layers.get_submodule("1").get_submodule("0").running_mean, before)
    assert "does not train a transposed convolution" in zaq_fx.audit(ready)["layers.1"].reason


@pytest.mark.parametrize("affine", [False, True])
def test_batch_norm_without_parameters_trains(affine):
    torch.manual_seed(0)
    model = perturb(Chain(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))).eval()
    if not affine:
        model.layers[1] = nn.BatchNorm2d(8, affine=False).eval()
    assert_right(model, MANY, qat=True)


class Twice(nn.Module):
    """One convolution and one BatchNorm, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.out = nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.bn(self.conv(x)) - 0.5 * self.bn(self.conv(x.flip(-1))))


class Levels(nn.Module):
    """One convolution with a BatchNorm for each level of a pyramid."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 8, 3), nn.AvgPool2d(2)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.norms[0](self.conv(x)), self.norms[1](self.conv(self.pool(x))).relu()


class Tied(nn.Module):
    """Two convolutions on one weight; a BatchNorm behind each."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.b.weight = self.a.weight
        self.norm_a, self.norm_b = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm_a(self.a(x))) + self.norm_b(self.b(x))


class Read(nn.Module):
    """A convolution read by its BatchNorm and by something else."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn, self.out = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        return self.out(y + torch.relu(self.bn(y)))


class Sizes(nn.Module):
    """One convolution, on a signal and on a fiftieth of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.act = nn.LeakyReLU(0.2)
        nn.init.zeros_(self.conv.bias)
        nn.init.zeros_(self.b.bias)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.a(self.act(self.conv(x))), self.b(self.act(self.conv(x * 0.02)))


@pytest.mark.parametrize("qat", [False, True])
@pytest.mark.parametrize("cls", [Twice, Levels, Tied, Read, Sizes])
def test_layers_called_more_than_once(cls, qat):
    torch.manual_seed(0)
    model = perturb(cls()).eval()
    before = copy.deepcopy(model.state_dict())
    assert_right(model, MANY, qat=qat)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("qat", [False, True])
def test_every_call_has_the_same_weight(qat):
    torch.manual_seed(0)
    ready = prepared(Sizes().eval(), MANY, qat=qat, **({"learnable": True} if qat else {}))
    layers = {layer.name: layer for layer in layers_of(ready)}
    assert list(layers) == ["conv", "a", "conv_call2", "b"]
    assert layers["conv"].root.weight.data_ptr() == layers["conv_call2"].root.weight.data_ptr()
    if qat:
        assert ready.conv.weight is ready.conv_call2.weight
        assert ready.conv.weight_fake_quant is ready.conv_call2.weight_fake_quant
    zaq_fx.calibrate(ready, [MANY])
    int8_model = zaq_fx.convert(ready)
    first, second = (zaq_fx.integer_weight(m) for m in (int8_model.conv, int8_model.conv_call2))
    assert torch.equal(first.dequantize(), second.dequantize())
    assert int8_model.conv.scale > 10 * int8_model.conv_call2.scale
    assert "same weight as 'conv'" in zaq_fx.audit(int8_model)["conv_call2"].reason


@pytest.mark.parametrize("key", ["conv", "con?", nn.Conv2d])
def test_overrides_mean_every_call(key):
    overrides = {key: None, "a": UniformSpec(8)}
    ready = prepared(Sizes().eval(), MANY, overrides=overrides)
    specs = {layer.name: layer.spec for layer in layers_of(ready)}
    assert (specs["conv"], specs["conv_call2"]) == (None, None)
    assert specs["a"] == UniformSpec(8)
    exact = {"conv": UniformSpec(8), "c*": None}
    specs = {la.name: la.spec for la in layers_of(prepared(Sizes(), MANY, overrides=exact))}
    assert specs["conv"] == specs["conv_call2"] == UniformSpec(8)


COMPUTED = {
    "weight norm": nn.utils.parametrizations.weight_norm,
    "spectral norm": nn.utils.parametrizations.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
    "old weight norm": nn.utils.weight_norm,
    "old spectral norm": nn.utils.spectral_norm,
    "pruning": lambda conv: nn.utils.prune.l1_unstructured(conv, "weight", 0.5),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("qat", [False, True])
@pytest.mark.parametrize("name", COMPUTED)
def test_computed_weights_become_constants(name, qat):
    torch.manual_seed(0)
    model = perturb(Chain(COMPUTED[name](nn.Conv2d(8, 8, 3)), nn.BatchNorm2d(8))).eval()
    names = set(model.state_dict())
    int8_model = assert_right(model, MANY, qat=qat)
    assert set(model.state_dict()) == names  # the user's model keeps its own
    assert "is a constant" in zaq_fx.audit(int8_model)["layers.0"].reason


def test_models_that_need_nothing_keep_their_class():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    assert type(zaq_fx.prepare_model(model)) is nn.Sequential


def test_the_stock_functions_with_a_rewritten_model():
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    torch.manual_seed(0)
    model = perturb(Chain(nn.ConvTranspose2d(8, 8, 2, 2, groups=2), nn.BatchNorm2d(8), nn.PReLU()))
    ready = zaq_fx.prepare_model(model.eval())
    backend = zaq_fx.pwlq_backend_config()
    mapping = zaq_fx.pwlq_qconfig_mapping(UniformSpec(7, "symmetric"), 7)
    student = prepare_fx(ready, mapping, (MANY,), backend_config=backend)
    assert sqnr(model(MANY), student(MANY)) > 100
    zaq_fx.calibrate(student, [MANY])
    planned = zaq_fx.audit(student)
    int8 = convert_fx(student, backend_config=backend)
    assert sqnr(model(MANY), int8(MANY)) > 22
    assert "PReLU" in zaq_fx.audit(int8, planned)["layers.2"].reason


def test_a_folded_model_fuses_as_the_host_folds_it():
    """Folding leaves an identity in BatchNorm's place; nothing may run in float for that."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    folded = fold_batch_norm(perturb(model).eval())
    x = torch.randn(8, 3, 8, 8)
    kinds = []
    for ready in (model, folded):
        prepared = zaq_fx.prepare(ready, (x,), PWLQSpec(bits=4), 7, input_bits=7)
        zaq_fx.calibrate(prepared, [x])
        int8_model = zaq_fx.convert(prepared)
        kinds.append([type(m).__name__ for m in int8_model.modules() if hasattr(m, "zero_point")])
    assert kinds[0] == kinds[1] == ["ConvReLU2d", "Conv2d"]


class Vector(nn.Module):
    """A learned vector goes through a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.vector, self.fc = nn.Parameter(torch.randn(6)), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.fc(self.vector)[:, None, None]


def test_a_layer_that_is_given_a_vector_in_the_stock_functions():
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    torch.manual_seed(0)
    model, backend = Vector().eval(), zaq_fx.pwlq_backend_config()
    mapping = zaq_fx.pwlq_qconfig_mapping(UniformSpec(7, "symmetric"), 7)
    student = prepare_fx(zaq_fx.prepare_model(model), mapping, (MANY,), backend_config=backend)
    with pytest.raises(
        ValueError, match=r"layer 'fc' is given a tensor of shape \(6,\).*example_i"
    ):
        zaq_fx.calibrate(student, [MANY[:, :3]])
    ready = zaq_fx.prepare_model(model, (MANY[:, :3],))
    student = prepare_fx(ready, mapping, (MANY,), backend_config=backend)
    zaq_fx.calibrate(student, [MANY[:, :3]])
    int8 = convert_fx(student, backend_config=backend)
    assert sqnr(model(MANY[:, :3]), int8(MANY[:, :3])) > 22


def test_what_functions_read_is_named_and_trained_with_the_layer():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x):
            return torch.matmul(self.fc(x), self.fc.weight) * self.fc.bias

    torch.manual_seed(0)
    model, x = Reads().eval(), torch.randn(8, 6)
    prepared = zaq_fx.prepare(model, (x,), UniformSpec(7, "symmetric"), qat=True)
    assert "a function reads its parameters" in zaq_fx.audit(prepared)["fc"].reason
    assert prepared.fc_weight is prepared.fc.weight
    assert prepared.fc_bias is not prepared.fc.bias
    zaq_fx.calibrate(prepared, [x])
    assert not torch.equal(prepared.fc.bias, model.fc.bias)
    assert torch.equal(prepared.fc_bias, model.fc.bias)
