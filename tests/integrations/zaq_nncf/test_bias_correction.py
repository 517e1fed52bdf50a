"""NNCF's fast bias correction sees PWLQ weights, and the teacher gets back what it took."""

import nncf
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


def test_the_correction_is_that_of_the_pwlq_weights(net: nn.Module, images: Tensor) -> None:
    """NNCF, by its own definition: the mean output, float against quantized weights on mean input.

    Checked by float64 arithmetic for the linear layer, where the mean of the output is the output
    of the mean.
    """
    any_size = AdvancedBiasCorrectionParameters(threshold=float("inf"))
    chosen = AdvancedQuantizationParameters(bias_correction_params=any_size)
    spec = PWLQSpec(bits=2)
    made = zaq_nncf.quantize(net, nncf.Dataset([images]), spec, advanced_parameters=chosen)
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
    assert torch.allclose(made.fc.bias.double(), expected, atol=2e-6)


def test_the_teacher_has_the_float_models_biases(net: nn.Module, images: Tensor) -> None:
    made = zaq_nncf.quantize(net, [images], PWLQSpec(bits=2))
    folded = fold_batch_norm(net)
    moved = [not torch.equal(made.get_parameter(n), p) for n, p in folded.named_parameters()]
    assert any(moved)
    teacher = zaq_nncf.twin(made)
    for name, value in folded.named_parameters():
        assert torch.allclose(teacher.get_parameter(name), value, atol=1e-6), name
        assert not teacher.get_parameter(name).requires_grad
    with torch.no_grad():
        assert torch.allclose(teacher(images), net(images), atol=1e-5)
        assert (made(images) - net(images)).abs().max() > 1e-3


def test_it_can_be_left_out(net: nn.Module, images: Tensor) -> None:
    chosen = AdvancedQuantizationParameters(disable_bias_correction=True)
    made = zaq_nncf.quantize(net, [images], FAST, advanced_parameters=chosen)
    for name, value in fold_batch_norm(net).named_parameters():
        assert torch.equal(made.get_parameter(name), value), name
