"""A prepared model that is not the float model is refused, and the place is named."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from zaq_plugin.ptq import calibrate, correct_bias, simulate
from zaq_plugin.pwlq import UniformSpec
from zaq_plugin.student.proof import require_float_function, sqnr


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)
    ).eval()


def test_a_calibrated_and_corrected_student_is_the_float_model() -> None:
    model, x = network(), torch.randn(4, 3, 10, 10)
    student = simulate(model, UniformSpec(3), 4, example_inputs=(x,))
    calibrate(student, [x])
    correct_bias(student, [x])
    assert require_float_function(student, model, (x,)) > 100


def test_the_first_layer_whose_input_differs_is_named() -> None:
    model, x = network(), torch.randn(4, 3, 10, 10)
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        wrong[0].weight[0] *= 1.5  # what a host that folds wrongly would do
    student = simulate(wrong, UniformSpec(7), 8, example_inputs=(x,))
    words = r"output has \d+\.\d dB \(80 are demanded\).* layer '2' is the first .* layer '0'\."
    with pytest.raises(ValueError, match=words):
        require_float_function(student, model, (x,))


def test_what_differs_behind_the_last_layer() -> None:
    model, x = network(), torch.randn(4, 3, 10, 10)
    student = simulate(nn.Sequential(*model, nn.Tanh()), UniformSpec(7), 8, example_inputs=(x,))
    with pytest.raises(ValueError, match="what differs lies behind layer '4'"):
        require_float_function(student, model, (x,))


def test_the_ratio_by_hand() -> None:
    a = torch.tensor([3.0, 4.0])
    assert sqnr(a, a + torch.tensor([0.0, 0.5])) == pytest.approx(20.0)
    assert sqnr({"x": a, "y": [a]}, {"x": a, "y": [a + 5]}) == pytest.approx(-3.0103, abs=1e-3)
    assert sqnr(a, a[:1]) == -float("inf")
