"""Channels-last models and images give the file that contiguous ones do."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import zaq_onnx
from zaq_plugin.ptq import calibrate, simulate
from zaq_plugin.pwlq import PWLQSpec
from zaq_plugin.student.host import Assignment, find_host

LAST = torch.channels_last


def network() -> nn.Module:
    """Its average is one position, whose channels-last strides torch writes down."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 16, 3), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    ).eval()  # fmt: skip


def images() -> Tensor:
    return torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def student(model: nn.Module, x: Tensor, route: str) -> nn.Module:
    if route == "pt2e":
        host = find_host("pt2e")
        prepared = host.prepare(model, (x[:2],), Assignment(PWLQSpec(4), 8)).model
        calibrate(prepared, [x])
        return host.convert(prepared)
    made = simulate(model, PWLQSpec(4), activations=8)
    calibrate(made, [x])
    return made


def exported(model: nn.Module, x: Tensor, route: str, path: Path) -> onnx.ModelProto:
    made = student(model, x, route)
    zaq_onnx.export(made, (x[:2],), path, calibration=[x])
    zaq_onnx.verify(path, made, x).require()
    return onnx.load(path)


@pytest.fixture(scope="module", params=["simulated", "pt2e"])
def contiguous(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, onnx.ModelProto]:
    """A route, and the file of a contiguous model and images."""
    path = tmp_path_factory.mktemp("contiguous") / "net.onnx"
    return request.param, exported(network(), images(), request.param, path)


@pytest.mark.parametrize("last", ["images", "model", "both"])
def test_the_file_is_that_of_contiguous_ones(
    contiguous: tuple[str, onnx.ModelProto], last: str, tmp_path: Path
) -> None:
    route, expected = contiguous
    model, x = network(), images()
    if last != "images":
        model = model.to(memory_format=LAST)  # type: ignore[call-overload]
    if last != "model":
        x = x.to(memory_format=LAST)
    file = exported(model, x, route, tmp_path / "net.onnx")
    operators = [node.op_type for node in expected.graph.node]
    assert not {"Shape", "Range", "Gather"} & set(operators)
    assert [node.op_type for node in file.graph.node] == operators
    assert file == expected
