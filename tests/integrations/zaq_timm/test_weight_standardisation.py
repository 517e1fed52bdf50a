"""timm's weight-standardised convolutions become plain ones."""

import pytest
import torch
from torch import nn

from zaq_plugin import UniformSpec
from zaq_plugin.observers import MinMaxObserver
from zaq_plugin.ptq import calibrate, fold_batch_norm, quantized_tensors, simulate
from zaq_plugin.pwlq import sqnr_db

layers = pytest.importorskip("timm.layers")
KINDS = ("ScaledStdConv2d", "ScaledStdConv2dSame", "StdConv2d", "StdConv2dSame")


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("stride", [1, 2])
def test_the_function_stays_and_each_weight_is_quantized(name, stride):
    torch.manual_seed(0)
    kind, padding = getattr(layers, name), "same" if "Same" in name else 1
    model = nn.Sequential(
        kind(3, 8, 3, stride=stride, padding=padding),
        nn.ReLU(),
        kind(8, 8, 3, padding=padding),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
    ).eval()
    x = torch.rand(4, 3, 11, 14)
    folded = fold_batch_norm(model)
    assert folded.zaq_folding.baked == ("0", "2")
    torch.testing.assert_close(folded(x), model(x))
    student = simulate(folded, UniformSpec(7, "symmetric"), 8, observer=MinMaxObserver)
    calibrate(student, [x])
    assert set(quantized_tensors(student)) == {"0", "2", "4"}
    assert sqnr_db(model(x), student(x)) > 25
