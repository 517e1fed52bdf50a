"""Rewriting a model leaves its function and the user's copy alone, and reaches every weight."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

import zaq_fx
from zaq_fx.surgery import functional_to_modules, unwrap_norm_activations
from zaq_plugin.pwlq import PWLQSpec, quantize

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
