#!/usr/bin/env bash
# OpenVINO pads the average pool of a quantized tensor with code 0 in place of the zero point.
#
# Versions:  openvino 2026.4.1 (CPU plugin), onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6;
#            Python 3.11 or newer.
# Input:     QuantizeLinear and DequantizeLinear (int8, scale 1/64, zero point -128, as is usual
#            for a tensor that has no negative values), then AveragePool 3x3 with a padding of 1
#            and count_include_pad=1, over a 3x3 image of which each value is 0.5.
# Behaviour: the pool is taken over the integer codes, and the padding is filled with code 0, which
#            stands for (0 + 128) / 64 = 2.0. The means at the border rise above the largest value
#            of the image. With zero point 0 the answer is right.
# Expected:  the padding of AveragePool is zero, and counts where count_include_pad is 1: 4/9 of 0.5
#            in the corners, 6/9 at the edges. A rewrite to integers has to pad with the zero point.
#            ONNX's reference evaluator and ONNX Runtime agree with that.
# Output seen:
#   by definition           0.2222 0.3333 0.5000
#   padded with code 0      1.3333 1.0000 0.5000
#   reference evaluator     0.2222 0.3333 0.5000
#   ONNX Runtime            0.2222 0.3333 0.5000
#   OpenVINO                1.3333 1.0000 0.5000
#   OpenVINO, zero point 0  0.2222 0.3333 0.5000
#   (a corner, an edge, the middle)
# Exits with 0 where it is seen again, else with another status.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1 numpy==2.4.6

"$folder/venv/bin/python" - "$folder/model.onnx" <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

PATH = sys.argv[1]
SHAPE = [1, 1, 3, 3]
x = np.full(SHAPE, 0.5, np.float32)


def pooled(zero_point: int) -> onnx.ModelProto:
    grid = ["scale", "zero"]
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", *grid], ["codes"]),
            helper.make_node("DequantizeLinear", ["codes", *grid], ["values"]),
            helper.make_node(
                "AveragePool",
                ["values"],
                ["y"],
                kernel_shape=[3, 3],
                pads=[1, 1, 1, 1],
                count_include_pad=1,
            ),
        ],
        "pooled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, SHAPE)],
        [
            numpy_helper.from_array(np.float32(1 / 64), "scale"),
            numpy_helper.from_array(np.int8(zero_point), "zero"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def in_openvino(model: onnx.ModelProto) -> np.ndarray:
    onnx.save(model, PATH)
    # In float32 whatever the processor prefers, such that no other rounding comes in.
    compiled = ov.Core().compile_model(PATH, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled({"x": x})[0]


def in_onnxruntime(model: onnx.ModelProto) -> np.ndarray:
    session = ort.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


def mean(image: np.ndarray, padding: float) -> np.ndarray:
    """The mean of each 3x3 window, with the border filled."""
    padded = np.pad(image[0, 0], 1, constant_values=padding)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    return windows.mean(axis=(2, 3))[None, None]


model, symmetric = pooled(-128), pooled(0)
expected, code_zero = mean(x, 0.0), mean(x, 128 / 64)
answers = {
    "by definition": (expected, expected),
    "padded with code 0": (code_zero, code_zero),
    "reference evaluator": (ReferenceEvaluator(model).run(None, {"x": x})[0], expected),
    "ONNX Runtime": (in_onnxruntime(model), expected),
    "OpenVINO": (in_openvino(model), code_zero),
    "OpenVINO, zero point 0": (in_openvino(symmetric), expected),
}
for name, (values, _) in answers.items():
    print(f"{name:<23}", *(f"{value:.4f}" for value in values.ravel()[[0, 1, 4]]))
print("(a corner, an edge, the middle)")

same = all(np.allclose(values, seen, atol=1e-5) for values, seen in answers.values())
sys.exit(0 if same else "the behaviour is another than the one that is described")
PYTHON
