"""Biases are corrected for PWLQ weights, by either method, and the teacher gets them back."""

from functools import partial

import nncf
import pytest
import torch
from nncf.quantization.advanced_parameters import (
    AdvancedBiasCorrectionParameters,
    AdvancedQuantizationParameters,
)
from torch import Tensor, nn

import zaq_nncf
from zaq_plugin import PWLQSpec, quantize
from zaq_plugin.ptq import fold_batch_norm

FAST = PWLQSpec(bits=4, policy="gaussian")


def test_nncfs_correction_is_that_of_the_pwlq_weights(net: nn.Module, images: Tensor) -> None:
    """NNCF, by its own definition: the mean output, float against quantized weights on mean input.

    Checked by float64 arithmetic for the linear layer, where the mean of the output is the output
    of the mean.
    """
    any_size = AdvancedBiasCorrectionParameters(threshold=float("inf"))
    chosen = AdvancedQuantizationParameters(bias_correction_params=any_size)
    spec = PWLQSpec(bits=2)
    options = {"advanced_parameters": chosen, "bias_correction": "nncf"}
    student = zaq_nncf.quantize(net, nncf.Dataset([images]), spec, **options)
    folded = fold_batch_norm(net)
    seen: list[Tensor] = []
    folded.fc.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        folded(images)
        mean = seen[0].double().mean(0)
        weight = folded.fc.weight
        error = (quantize(weight, spec).dequantize() - weight).double() @ mean
        expected = folded.fc.bias.double() - error
    assert error.abs().max() > 1e-3
    assert torch.allclose(student.fc.bias.double(), expected, atol=2e-6)


def test_the_mean_error_of_every_layer_is_gone(net: nn.Module, images: Tensor) -> None:
    """By brute force: on the student's own inputs, float and quantized layer agree in the mean."""
    spec = PWLQSpec(bits=2)
    student = zaq_nncf.quantize(net, list(images.split(4)), spec)
    folded = fold_batch_norm(net)
    stripped = zaq_nncf.strip(student)
    for name in ("stem.0", "block.conv1", "block.conv2", "block.short.0", "fc"):
        seen: list[Tensor] = []
        layer, reference = stripped.get_submodule(name), folded.get_submodule(name)
        handle = layer.register_forward_hook(partial(keep, seen))
        with torch.no_grad():
            stripped(images)
            handle.remove()
            x, quantized = seen[0].double(), layer.double()(seen[0].double())
            gap = quantized - reference.double()(x)
            plain = (
                quantized
                - layer.bias.view(-1, *[1] * (gap.dim() - 2))
                + (reference.bias.view(-1, *[1] * (gap.dim() - 2)))
            )
        axes = [0, *range(2, gap.dim())]
        before = (plain - reference(x)).mean(axes).abs().max()
        assert before > 1e-3, name
        assert gap.mean(axes).abs().max() < 1e-5, name
        layer.float()
        reference.float()


def keep(seen: list[Tensor], module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
    seen.append(args[0].detach())


def test_activations_beat_channel_means_where_borders_matter(images: Tensor) -> None:
    """Padded convolutions on small images, mean far from zero: what NNCF's method cannot see."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 16), (16, 16)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 144, 10)).eval()
    x = images + 2

    def error(method: str | None) -> float:
        student = zaq_nncf.quantize(model, [x], PWLQSpec(bits=2), bias_correction=method)
        with torch.no_grad():
            return float((student(x) - model(x)).square().mean())

    assert error("activations") < error(None)
    assert error("activations") < error("nncf")


def test_a_method_that_does_not_exist(net: nn.Module, images: Tensor) -> None:
    with pytest.raises(ValueError, match="must be 'activations', 'nncf' or None; got 'fast'"):
        zaq_nncf.quantize(net, [images], FAST, bias_correction="fast")


def test_the_teacher_has_the_float_models_biases(net: nn.Module, images: Tensor) -> None:
    student = zaq_nncf.quantize(net, [images], PWLQSpec(bits=2))
    folded = fold_batch_norm(net)
    moved = [not torch.equal(student.get_parameter(n), p) for n, p in folded.named_parameters()]
    assert any(moved)
    teacher = zaq_nncf.twin(student)
    for name, value in folded.named_parameters():
        assert torch.allclose(teacher.get_parameter(name), value, atol=1e-6), name
        assert not teacher.get_parameter(name).requires_grad
    with torch.no_grad():
        assert torch.allclose(teacher(images), net(images), atol=1e-5)
        assert (student(images) - net(images)).abs().max() > 1e-3


def test_it_can_be_left_out(net: nn.Module, images: Tensor) -> None:
    student = zaq_nncf.quantize(net, [images], FAST, bias_correction=None)
    for name, value in fold_batch_norm(net).named_parameters():
        assert torch.equal(student.get_parameter(name), value), name
