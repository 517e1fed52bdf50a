"""A BatchNorm that is not folded: no grid of 8 bits between a layer and it."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import zaq_onnx
from zaq_onnx.completion import UnfoldedNorm
from zaq_onnx.graph import Graph
from zaq_onnx.inspection import float_operations
from zaq_onnx.runtimes import optimized, ort_session, run_ort
from zaq_plugin.ptq import calibrate, fold_batch_norm, simulate
from zaq_plugin.pwlq import UniformSpec


def network() -> tuple[nn.Module, torch.Tensor]:
    """Channels 1 to 1000 apart in size, which BatchNorm makes equally large."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
        nn.Conv2d(16, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    ).eval()  # fmt: skip
    sizes = torch.logspace(0, 3, 16)
    conv, norm = model[0], model[1]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    with torch.no_grad():
        conv.weight.mul_(sizes[:, None, None, None])
        norm.running_var.copy_(sizes**2)
    return model, torch.randn(8, 3, 12, 12)


@pytest.mark.parametrize("folded", [False, True])
def test_no_grid_lies_between_a_layer_and_a_norm(folded: bool, tmp_path: Path) -> None:
    """Against the student's own answers; with one grid for all channels it was 12 % off."""
    model, images = network()
    student = simulate(fold_batch_norm(model) if folded else model, UniformSpec(8), 8)
    calibrate(student, [images])
    path = tmp_path / "a.onnx"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnfoldedNorm)
        zaq_onnx.export(student, (images,), path, calibration=[images])
    said = [w for w in caught if w.category is UnfoldedNorm]
    floats = float_operations(Graph(optimized(path)))
    answer, expected = run_ort(ort_session(path), (images,))[0], student(images).detach().numpy()
    assert np.linalg.norm(answer - expected) < 0.02 * np.linalg.norm(expected)
    if folded:
        assert not said
        assert floats == []
    else:
        (one,) = said
        assert "1 layers multiply in float" in str(one.message)
        assert "fold_batch_norm(model, example_inputs)" in str(one.message)
        assert one.filename == __file__
        assert any(name.startswith("BatchNormalization") for name in floats)
