"""Zeros in front of a convolution become its own, and nothing else does."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import zaq_onnx
from zaq_onnx.graph import Graph
from zaq_onnx.padding import pads_into_convolutions
from zaq_onnx.runtimes import ort_session, run_ort
from zaq_plugin.pwlq import PWLQSpec


def model_of(amounts: list[int], value: float = 0.0, grid: bool = True, **conv: Any) -> Graph:
    """``x -> Pad -> (grid) -> Conv``, whose grid has a zero point of 7."""
    values = {
        "amounts": np.array(amounts, np.int64),
        "value": np.array(value, np.float32),
        "scale": np.array(0.1, np.float32),
        "zero": np.array(7, np.uint8),
        "w": np.random.default_rng(0).normal(size=(4, 2, 3, 3)).astype(np.float32),
    }
    nodes = [helper.make_node("Pad", ["x", "amounts", "value"], ["p"])]
    name = "p"
    if grid:
        nodes.append(helper.make_node("QuantizeLinear", ["p", "scale", "zero"], ["q"]))
        nodes.append(helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]))
        name = "d"
    nodes.append(helper.make_node("Conv", [name, "w"], ["y"], strides=[2, 2], **conv))
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, [1, 2, 8, 8])],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(v, k) for k, v in values.items()],
    )
    opset = [helper.make_opsetid("", 21)]
    return Graph(helper.make_model(graph, opset_imports=opset, ir_version=10))


def run(graph: Graph) -> np.ndarray:
    """The operators one by one, on an image whose values lie on the grid."""
    x = np.random.default_rng(1).integers(-7, 100, (1, 2, 8, 8)).astype(np.float32) / 10
    return run_ort(ort_session(graph.to_model(), optimize=False), (x,))[0]


@pytest.mark.parametrize("grid", [True, False])
@pytest.mark.parametrize("conv", [{}, {"pads": [1, 1, 1, 1]}])
def test_zeros_become_the_convolutions_own(grid: bool, conv: dict[str, Any]) -> None:
    """Against the model as it was, run by ONNX Runtime without optimizing it."""
    graph = model_of([0, 0, 0, 1, 0, 0, 1, 2], grid=grid, **conv)
    expected = run(graph)
    pads_into_convolutions(graph)
    assert "Pad" not in [node.op_type for node in graph.nodes]
    np.testing.assert_array_equal(run(graph), expected)


@pytest.mark.parametrize(
    ("amounts", "value", "conv"),
    [
        ([0, 0, 0, 0, 0, 0, 1, 1], 1.0, {}),
        ([0, 0, 0, -1, 0, 0, 1, 1], 0.0, {}),
        ([0, 0, 0, 0, 1, 0, 1, 1], 0.0, {}),
        ([0, 0, 0, 0, 0, 0, 1, 1], 0.0, {"auto_pad": "SAME_UPPER"}),
    ],
    ids=["ones", "cropping", "batch", "auto_pad"],
)
def test_other_padding_stays(amounts: list[int], value: float, conv: dict[str, Any]) -> None:
    graph = model_of(amounts, value, **conv)
    pads_into_convolutions(graph)
    assert "Pad" in [node.op_type for node in graph.nodes]


def test_padding_that_others_read_stays() -> None:
    graph = model_of([0, 0, 0, 0, 0, 0, 1, 1])
    graph.nodes.append(helper.make_node("Relu", ["p"], ["r"]))
    pads_into_convolutions(graph)
    assert "Pad" in [node.op_type for node in graph.nodes]


class Same(nn.Module):
    """A strided convolution that pads at the end only, as TensorFlow's "same" does."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, stride=2)
        self.second = nn.Conv2d(16, 16, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(F.pad(x, [0, 1, 0, 1])))
        return self.second(F.pad(x, [0, 1, 0, 1])).mean((2, 3))


def test_exported_models_do_not_pad_by_themselves(make: Any, tmp_path: Path) -> None:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    import zaq_pt2e

    torch.manual_seed(0)
    model, images = Same().eval(), torch.randn(8, 3, 16, 16)
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(model, (images,), dynamic_shapes=shapes)
    prepared = prepare_pt2e(program.module(), zaq_pt2e.PWLQQuantizer(PWLQSpec(bits=4)))
    converted = convert_pt2e(zaq_pt2e.calibrate(prepared, [images]))
    path = tmp_path / "same.onnx"
    zaq_onnx.export(converted, (images,), path, calibration=[images], reduce_range=True)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert "Pad" not in kinds
    report = zaq_onnx.verify(path, converted, images)
    assert report.ok, str(report)
    assert report.integer_only
