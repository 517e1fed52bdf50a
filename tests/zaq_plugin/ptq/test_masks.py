"""Attention masks of minus infinity, or nearly: only what is quantized must be finite."""

import pytest
import torch
from torch import Tensor, nn

from zaq_plugin import UniformSpec
from zaq_plugin.observers import MinMaxObserver
from zaq_plugin.ptq import (
    calibrate,
    compensate_rounding,
    correct_bias,
    fold_batch_norm,
    quantized_tensors,
    simulate,
)
from zaq_plugin.pwlq import sqnr_db
from zaq_plugin.strategies import Request, apply
from zaq_plugin.zero_shot.taps import find_taps

VALUES = [-float("inf"), torch.finfo(torch.float32).min]


class Mask(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((9, 9), value).triu(1))

    def forward(self, scores: Tensor) -> Tensor:
        return scores + self.mask


class Attention(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.mask, self.head = Mask(value), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu().flatten(2).transpose(1, 2)
        scores = self.mask(self.q(x) @ self.k(x).transpose(1, 2))
        x = x + self.out(scores.softmax(-1) @ self.v(x))
        return self.head(x.mean(1))


@pytest.mark.parametrize("value", VALUES)
def test_calibration_and_corrections(value):
    model, x = Attention(value).eval(), torch.randn(8, 3, 6, 6)
    folded = fold_batch_norm(model, (x,))
    student = simulate(folded, UniformSpec(7, "symmetric"), 8, observer=MinMaxObserver)
    calibrate(student, [x])
    correct_bias(student, [x])
    compensate_rounding(student, [x], folded)
    assert set(quantized_tensors(student)) == {"stem", "q", "k", "v", "out", "head"}
    assert sqnr_db(model(x).detach(), student(x).detach()) > 30


@pytest.mark.parametrize("value", VALUES)
def test_masked_maps_are_no_taps(value):
    model, x = Attention(value).eval(), torch.randn(2, 3, 6, 6)
    assert "mask" not in find_taps(model, x)
    with pytest.raises(ValueError, match="mask"):
        find_taps(model, x, ["mask"])


@pytest.mark.parametrize("value", VALUES)
def test_zero_shot_training(value):
    model, x = Attention(value).eval(), torch.randn(8, 3, 6, 6)
    request = Request(6, 8, example_inputs=(x,), synthetic_count=8, effort=0.01, batch_size=4)
    applied = apply("zaq-paper", model, request)
    assert sqnr_db(model(x).detach(), applied.model(x).detach()) > 25
