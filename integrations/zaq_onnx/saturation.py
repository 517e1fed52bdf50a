"""Does this processor add products of int8 exactly? The runtimes are asked, with a known answer."""

from __future__ import annotations

from functools import cache

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from zaq_onnx.graph import Array
from zaq_onnx.runtimes import openvino_compiled, ort_session, run_openvino, run_ort

ADVICE = (
    "this processor's int8 kernels add products in 16 bits, which saturate (it has no VNNI); "
    "export(..., reduce_range=True) makes weights with which they do not"
)
WARNING = (
    "layers may add up to more than 16 bits, which this processor's int8 kernels saturate to (it "
    "has no VNNI); export(..., reduce_range=True) makes weights with which they do not"
)
_CHANNELS, _SIDE = 64, 4


@cache
def saturates(runtime: str) -> bool:
    """Whether a runtime's int8 convolution saturates on this processor.

    Every activation is 255 and every weight 127, so that two products exceed 16 bits.

    Args:
        runtime: ``onnxruntime`` or ``openvino``.
    """
    x = np.full((1, _CHANNELS, _SIDE, _SIDE), 255, np.float32)
    if runtime == "onnxruntime":
        output = run_ort(ort_session(probe_model()), (x,))[0]
    else:
        output = run_openvino(openvino_compiled(probe_model()), (x,))[0]
    return bool(np.abs(output - 255).max() > 2)


def probe_model() -> ModelProto:
    """A convolution whose every output is 255, on a grid of whole numbers."""
    total = np.float32(127 * _CHANNELS)
    values: dict[str, Array] = {
        "one": np.array(1, np.float32),
        "zero": np.array(0, np.uint8),
        "w": np.full((_CHANNELS, _CHANNELS, 1, 1), 127, np.int8),
        "scale": np.full(_CHANNELS, 1 / total, np.float32),
        "zeros": np.zeros(_CHANNELS, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "scale", "zeros"], ["v"], axis=0),
        helper.make_node("Conv", ["d", "v"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "one", "zero"], ["p"]),
        helper.make_node("DequantizeLinear", ["p", "one", "zero"], ["y"]),
    ]
    shape = [1, _CHANNELS, _SIDE, _SIDE]
    graph = helper.make_graph(
        nodes,
        "saturation",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
