"""Facts about the exporter and the runtimes that this package leans on, undocumented all of them.

If one of these fails after an update, the host has changed: see ``zaq_onnx/_compat.py``.
"""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from zaq_onnx._compat import ORT_REQUANTIZER, QUANTIZED_LIBRARY, SCOPES
from zaq_onnx.runtimes import openvino_compiled, openvino_kernels, optimized, ort_session


def constant_model(nodes: list[Any], constants: dict[str, np.ndarray[Any, Any]]) -> onnx.ModelProto:
    """``y = x + float(o)``, where o is computed from constants."""
    nodes = [
        *nodes,
        helper.make_node("Cast", ["o"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "f"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "y"]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])]
    tensors = [numpy_helper.from_array(v, k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, values, tensors)
    opsets = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


BOOK = np.arange(-8, 8, dtype=np.int8).reshape(1, 16)
CODES = np.arange(16, dtype=np.int32).reshape(1, 16)
BYTES = np.arange(64, dtype=np.uint8).reshape(-1, 1)


@pytest.mark.parametrize(
    ("node", "constants", "folded"),
    [
        (
            helper.make_node("Gather", ["a", "b"], ["o"], axis=0),
            {"a": BOOK.reshape(-1), "b": CODES},
            True,
        ),
        (
            helper.make_node("BitShift", ["a", "b"], ["o"], direction="RIGHT"),
            {"a": BYTES.astype(np.uint32), "b": np.array([0, 2], np.uint32)},
            True,
        ),
        (
            helper.make_node("Mod", ["a", "b"], ["o"]),
            {"a": BYTES.astype(np.uint32), "b": np.array(4, np.uint32)},
            True,
        ),
        (
            helper.make_node("GatherElements", ["a", "b"], ["o"], axis=1),
            {"a": BOOK, "b": CODES},
            False,
        ),
        (
            helper.make_node("BitwiseAnd", ["a", "b"], ["o"]),
            {"a": BYTES, "b": np.array(3, np.uint8)},
            False,
        ),
        (
            helper.make_node("ScatterElements", ["a", "b", "c"], ["o"], axis=0),
            {
                "a": np.arange(40, dtype=np.float32),
                "b": np.array([3, 5], np.int32),
                "c": np.zeros(2, np.float32),
            },
            True,
        ),
        (
            helper.make_node("ScatterElements", ["a", "b", "c"], ["o"], axis=0),
            {
                "a": np.arange(40, dtype=np.int8),
                "b": np.array([3, 5], np.int32),
                "c": np.zeros(2, np.int8),
            },
            False,
        ),
    ],
    ids=[
        "Gather",
        "BitShift",
        "Mod",
        "GatherElements",
        "BitwiseAnd",
        "ScatterElements",
        "ScatterElements-bytes",
    ],
)
def test_openvino_folds_these_operators_and_not_those(
    node: Any, constants: dict[str, np.ndarray[Any, Any]], folded: bool
) -> None:
    compiled = openvino_compiled(constant_model([node], constants))
    left = sum(n for k, n in openvino_kernels(compiled).items() if k.startswith("Const"))
    assert (left <= 1) is folded, f"{left} constants are left"


def test_onnx_runtimes_requantizer_has_this_name(pt2e_case: Any, tmp_path: Any) -> None:
    """Switched off by name, biases stay float, and with them the layers."""
    path = tmp_path / "o.onnx"
    ort_session(pt2e_case.plain, save=path, requantize=False)
    names = [node.op_type for node in onnx.load(path).graph.node]
    assert ORT_REQUANTIZER == "WeightBiasQuantization"
    assert "QLinearConv" not in names
    assert "QLinearConv" in [n.op_type for n in optimized(pt2e_case.plain).graph.node]


def test_the_exporter_tells_the_modules_around_a_node() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1)).eval()
    program = torch.onnx.export(
        model, (torch.zeros(1, 1, 4, 4),), dynamo=True, opset_version=21, verbose=False
    )
    assert program is not None
    (conv,) = [n for n in program.model_proto.graph.node if n.op_type == "Conv"]
    assert {p.key: p.value for p in conv.metadata_props}[SCOPES].startswith("['', '0', ")


def test_torch_cannot_export_fake_quantizers_with_a_dynamic_batch() -> None:
    """Why `SpelledOut` replaces them while exporting."""

    class Fake(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fake_quantize_per_tensor_affine(x, 0.1, 0, 0, 255)

    with pytest.raises(Exception, match="fake_quantize_per_tensor_affine"):
        torch.export.export(
            Fake(), (torch.zeros(2, 3),), dynamic_shapes=({0: torch.export.Dim.AUTO},)
        )


def test_the_quantized_operators_are_registered() -> None:
    assert QUANTIZED_LIBRARY.ns == "quantized_decomposed"


def test_openvino_resizes_without_antialiasing() -> None:
    """Why `zaq_onnx.refusals` refuses it: it takes no notice of what the file says.

    ONNX Runtime does what ONNX defines, which at the borders is not quite what torch does.
    """
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 9, 16]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    sizes = numpy_helper.from_array(np.array([1, 2, 3, 5]), "sizes")
    node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode="linear", antialias=1)
    graph = helper.make_graph([node], "g", values[:1], values[1:], [sizes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    x = torch.rand(1, 2, 9, 16, generator=torch.Generator().manual_seed(0))
    (defined,) = ReferenceEvaluator(model).run(None, {"x": x.numpy()})
    np.testing.assert_allclose(ort_session(model).run(None, {"x": x.numpy()})[0], defined, 1e-4)
    output = openvino_compiled(model)([x.numpy()])[0]
    without = torch.nn.functional.interpolate(x, (3, 5), mode="bilinear").numpy()
    np.testing.assert_allclose(output, without, 1e-4)
    assert np.abs(output - defined).max() > 0.1
