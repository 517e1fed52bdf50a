"""Layers that compute their weight become plain ones, and what multiplies is on its grid."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zaq_plugin import UniformSpec
from zaq_plugin.ptq import calibrate, fold_batch_norm, quantized_tensors, simulate
from zaq_plugin.ptq.bake import bake_parametrizations
from zaq_plugin.ptq.computed_weights import SamePadded2d, why_not_plain


def standardised(weight: Tensor) -> Tensor:
    axes = tuple(range(1, weight.dim()))
    mean, std = weight.mean(axes, keepdim=True), weight.std(axes, keepdim=True)
    return (weight - mean) / (3 * std)


class StandardisedConv(nn.Conv2d):
    """Weight standardisation with a learned gain, which the plain layer has no use for."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, standardised(self.weight) * self.gain, self.bias)


class SameConv(StandardisedConv):
    """Padded by its input's size."""

    def forward(self, x: Tensor) -> Tensor:
        wide = [max((-(-n // 2) - 1) * 2 + 3 - n, 0) for n in (x.shape[3], x.shape[2])]
        x = F.pad(x, [wide[0] // 2, wide[0] - wide[0] // 2, wide[1] // 2, wide[1] - wide[1] // 2])
        return F.conv2d(x, standardised(self.weight), self.bias, 2)


class ScaledLinear(nn.Linear):
    """An equalised learning rate: weight and bias are multiplied by constants."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * 0.3, self.bias * 0.1)


class StandardisedTransposed(nn.ConvTranspose1d):
    def forward(self, x: Tensor) -> Tensor:
        weight = standardised(self.weight)
        return F.conv_transpose1d(x, weight, self.bias, self.stride, groups=self.groups)


class Attentive(nn.Conv2d):
    """The weight depends on the input."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * x.mean().sigmoid(), self.bias)


class Activated(nn.Conv2d):
    """Its own weight, and something behind the convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class ActivatedStandardised(StandardisedConv):
    """A computed weight, and something behind the convolution: no plain layer does this."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


LAYERS = {
    "standardised": lambda: StandardisedConv(4, 6, 3, padding=1),
    "strided, grouped": lambda: StandardisedConv(4, 6, 3, 2, groups=2),
    "reflecting": lambda: StandardisedConv(4, 6, 3, padding=1, padding_mode="reflect", bias=False),
    "padded by the input's size": lambda: SameConv(4, 6, 3, 2),
    "scaled linear": lambda: ScaledLinear(4, 6),
    "transposed": lambda: StandardisedTransposed(4, 6, 3, 2, groups=2),
}
SHAPES = {"scaled linear": (3, 4), "transposed": (3, 4, 9)}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_layer_is_plain_and_the_function_stays(name, dtype):
    torch.manual_seed(0)
    layer = LAYERS[name]().to(dtype)
    model = nn.Sequential(layer).eval()
    x = torch.randn(SHAPES.get(name, (3, 4, 13, 16)), dtype=dtype)
    right = model(x).detach()
    assert bake_parametrizations(model) == ["0"]
    kind = SamePadded2d if "size" in name else type(layer).__mro__[0]
    assert type(model[0]) is kind
    assert kind.__module__.startswith(("torch.nn.modules", "zaq_plugin"))
    assert set(dict(model[0].named_parameters())) <= {"weight", "bias"}
    torch.testing.assert_close(model(x), right)
    assert why_not_plain(model[0]) is None
    assert bake_parametrizations(model) == []


@pytest.mark.parametrize("name", LAYERS)
def test_what_multiplies_is_on_the_grid(name):
    torch.manual_seed(0)
    model = nn.Sequential(LAYERS[name]()).eval()
    x = torch.randn(SHAPES.get(name, (3, 4, 13, 16)))
    student = simulate(fold_batch_norm(model), UniformSpec(7, "symmetric"), None)
    used = next(iter(quantized_tensors(student).values())).dequantize()
    weight = copy.deepcopy(model)
    bake_parametrizations(weight)
    steps = (used - weight[0].weight).abs()
    axis = 1 if name == "transposed" else 0
    largest = weight[0].weight.abs().movedim(axis, 0).flatten(1).amax(1).max()
    assert float(steps.max()) <= float(largest) / 63  # at most one step of the widest channel
    zeroed = copy.deepcopy(weight)
    with torch.no_grad():
        zeroed[0].weight.copy_(used)
    torch.testing.assert_close(student(x), zeroed(x))


def test_a_batch_norm_behind_it_is_folded():
    torch.manual_seed(0)
    model = nn.Sequential(StandardisedConv(3, 6, 3), nn.BatchNorm2d(6)).eval()
    nn.init.uniform_(model[1].running_var, 0.5, 2)
    folded, x = fold_batch_norm(model), torch.randn(2, 3, 8, 8)
    assert folded.zaq_folding.folded == (("0", "1"),)
    assert folded.zaq_folding.baked == ("0",)
    assert isinstance(model[0], StandardisedConv)  # the user's stays
    torch.testing.assert_close(folded(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_weight_that_is_used_as_it_stands_needs_nothing():
    model = nn.Sequential(Activated(3, 4, 3)).eval()
    assert bake_parametrizations(model) == []
    assert type(model[0]) is Activated
    assert why_not_plain(model[0]) is None


def test_what_no_plain_layer_computes_stays_float_with_the_reason():
    torch.manual_seed(0)
    layers = [ActivatedStandardised(3, 4, 3), nn.Conv2d(4, 4, 3)]
    model, x = nn.Sequential(*layers).eval(), torch.randn(2, 3, 9, 9)
    folded = fold_batch_norm(model)
    torch.testing.assert_close(folded(x), model(x), rtol=0, atol=0)
    student = simulate(folded, UniformSpec(4), 8)
    calibrate(student, [x])
    assert set(quantized_tensors(student)) == {"1"}
    reason = next(r.reason for r in student.zaq_audit.records if r.name == "0")
    assert "the forward of ActivatedStandardised computes the weight" in reason


def test_a_weight_that_depends_on_the_input_is_no_constant():
    model, x = nn.Sequential(Attentive(3, 4, 3)).eval(), torch.randn(2, 3, 9, 9)
    right = model(x)
    assert bake_parametrizations(model) == []
    torch.testing.assert_close(model(x), right, rtol=0, atol=0)
