"""ONNX models around one weight."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def model_of(integers: np.ndarray, axis: int) -> onnx.ModelProto:
    """A model whose output is one dequantized weight (plus its input, a number)."""
    channels = integers.shape[axis]
    node = helper.make_node("DequantizeLinear", ["w", "s"], ["v"], axis=axis)
    graph = helper.make_graph(
        [node, helper.make_node("Add", ["v", "x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(integers.shape))],
        [
            numpy_helper.from_array(integers, "w"),
            numpy_helper.from_array(np.ones(channels, np.float32), "s"),
        ],
    )
    opsets = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
