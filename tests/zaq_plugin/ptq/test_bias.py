"""Bias correction against the definition, computed directly in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from layers import view_of
from torch import Tensor, nn

from zaq_plugin.ptq import calibrate, correct_bias, simulate, twin
from zaq_plugin.ptq.bias import mean_output_error
from zaq_plugin.pwlq import PWLQSpec, UniformSpec


class Branching(nn.Module):
    """A stem, a residual branch with a stride, padding and groups, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.left = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2)
        self.right = nn.Conv2d(8, 8, 1, stride=2, bias=False)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (self.left(x) + self.right(x)).relu()
        return self.head(x.mean((2, 3)))


def batches(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(4, 3, 8, 8, generator=generator) for _ in range(count)]


def student_of(model: nn.Module, images: list[Tensor]) -> nn.Module:
    student = simulate(model, UniformSpec(bits=3), 8, example_inputs=(images[0],))
    calibrate(student, images)
    return student


def branching() -> nn.Module:
    torch.manual_seed(0)
    return Branching().eval()


def direct(student: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """``E[(W^ - W) x]`` layer after layer, written out over every sample in float64."""
    functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "stem": lambda v, w: F.conv2d(v, w, padding=1),
        "left": lambda v, w: F.conv2d(v, w, stride=2, padding=1, groups=2),
        "right": lambda v, w: F.conv2d(v, w, stride=2),
        "head": F.linear,
    }
    student = copy.deepcopy(student)
    errors = {}
    for name, function in functions.items():
        layer = student.get_submodule(name)
        seen: list[Tensor] = []
        handle = layer.register_forward_hook(lambda m, args, out, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            student(x)
            handle.remove()
            value = layer.input_fake_quant(seen[0]).double()
            original = layer.parametrizations.weight.original.double()
            out = function(value, layer.weight.double()) - function(value, original)
            errors[name] = out.transpose(0, 1).flatten(1).mean(1)
            if layer.bias is None:
                layer.bias = nn.Parameter(torch.zeros(len(errors[name])))
            layer.bias.sub_(errors[name].float())
    return errors


@pytest.mark.parametrize("memory", [1 << 30, 0], ids=["one pass", "layer by layer"])
def test_against_the_definition(memory: int) -> None:
    images = batches()
    student = student_of(branching(), images)
    expected = direct(student, torch.cat(images))
    biases = {n: student.get_submodule(n).bias for n in expected}
    biases = {n: None if b is None else b.detach().clone() for n, b in biases.items()}
    taken = correct_bias(student, images, memory=memory)
    assert list(taken) == ["stem", "left", "right", "head"]
    for name, error in expected.items():
        assert float(error.abs().max()) > 1e-3
        assert torch.allclose(taken[name].double(), error, rtol=1e-4, atol=1e-7)
        before = biases[name] if biases[name] is not None else torch.zeros(len(error))
        after = student.get_submodule(name).bias.detach()
        assert torch.allclose(after.double(), before.double() - error, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("memory", [1 << 30, 0], ids=["one pass", "layer by layer"])
def test_a_second_call_changes_nothing(memory: int) -> None:
    images = batches()
    student = student_of(branching(), images)
    correct_bias(student, images, memory=memory)
    once = {k: v.clone() for k, v in student.state_dict().items()}
    correct_bias(student, images, memory=memory)
    for key, value in student.state_dict().items():
        assert torch.allclose(value.double(), once[key].double(), rtol=1e-6, atol=1e-7), key


def test_mean_output_equals_that_of_float_weights() -> None:
    """With float activations a corrected layer has the float layer's mean on the same inputs."""
    images = batches()
    model = branching()
    student = simulate(model, UniformSpec(bits=3), None, example_inputs=(images[0],))
    x = torch.cat(images)

    def first_mean(net: nn.Module) -> Tensor:
        return net.stem(x).detach().mean((0, 2, 3))

    assert not torch.allclose(first_mean(student), first_mean(model), atol=1e-3)
    correct_bias(student, images)
    assert torch.allclose(first_mean(student), first_mean(model), atol=1e-6)


def test_correction_helps_and_the_twin_undoes_it() -> None:
    images, model = batches(8), branching()
    student = simulate(model, UniformSpec(bits=2), None, example_inputs=(images[0],))
    with torch.no_grad():
        before = float((student(images[-1]) - model(images[-1])).square().mean())
        correct_bias(student, images[:-1])
        after = float((student(images[-1]) - model(images[-1])).square().mean())
        assert after < before / 2
        assert torch.allclose(twin(student)(images[0]), model(images[0]), rtol=1e-5, atol=1e-6)


class Shared(nn.Module):
    """One layer called twice, another in between."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.between = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(self.between(self.twice(x).relu()).relu())


def test_a_layer_called_twice() -> None:
    torch.manual_seed(0)
    model, images = Shared().eval(), [torch.rand(5, 6), torch.rand(3, 6)]
    student = simulate(model, UniformSpec(bits=3), None)
    x = torch.cat(images)
    with torch.no_grad():
        second = student.between(student.twice(x).relu()).relu()
        difference = student.twice.weight.double() - model.twice.weight.double()
        expected = (torch.cat([x, second]).double() @ difference.T).mean(0)
    taken = correct_bias(student, images)
    assert torch.allclose(taken["twice"].double(), expected, rtol=1e-4, atol=1e-7)
    again = correct_bias(student, images)
    assert torch.allclose(taken["twice"], again["twice"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"), (3, 4, 9)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (3, 4, 5, 5)),
        (nn.Conv3d(4, 6, 2), (3, 4, 4, 4, 4)),
        (nn.Linear(4, 6), (2, 3, 5, 4)),
    ],
    ids=["conv1d-circular", "transposed", "conv3d", "linear-4d"],
)
def test_every_kind_of_layer(layer: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    student = simulate(nn.Sequential(layer), PWLQSpec(bits=3), None)
    x = torch.randn(shape)
    with torch.no_grad():
        error = student.double()(x.double()) - copy.deepcopy(layer).double()(x.double())
    channel = error.dim() - 1 if isinstance(layer, nn.Linear) else 1
    expected = error.transpose(0, channel).flatten(1).mean(1)
    actual = mean_output_error(view_of(student[0]), x)
    assert torch.allclose(actual, expected, rtol=1e-5, atol=1e-8)
    assert float(expected.abs().max()) > 1e-4


def test_half_precision() -> None:
    images = [x.bfloat16() for x in batches()]
    model = branching().bfloat16()
    student = simulate(model, UniformSpec(bits=3), None)
    correct_bias(student, images)
    assert student.stem.bias.dtype == torch.bfloat16
    assert student(images[0]).isfinite().all()


def test_errors() -> None:
    images = batches()
    with pytest.raises(ValueError, match="no fake-quantized weights; pass what simulate"):
        correct_bias(branching(), images)
    student = student_of(branching(), images)
    with pytest.raises(ValueError, match="correct_bias got no batches"):
        correct_bias(student, [])
    student = simulate(branching(), UniformSpec(bits=3), None)
    with pytest.raises(ValueError, match="layer 'stem': the mean output error is not finite"):
        correct_bias(student, [torch.full((1, 3, 8, 8), float("inf"))])
