#!/usr/bin/env bash
# OpenVINO adds the first channel's bias to all channels of a convolution, where the graph asks for
# the size of its batch.
#
# Versions:  openvino 2026.4.1 (CPU plugin), onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6;
#            Python 3.11 or newer.
# Input:     a quantized convolution with a bias and a quantized output, as at the beginning of a
#            vision transformer; and a constant token that Shape, Concat and Expand repeat for each
#            image of a batch whose size is not known, concatenated with the convolution's output.
#            All values, means and sums lie on the grids: nothing is rounded.
# Behaviour: a file that `Core.read_model` has read gives both channels the bias of the first. The
#            same file by `openvino.convert_model` is right, and so are a token that is not
#            repeated, and a convolution whose output is not quantized.
# Expected:  4 * 0.25 * 0.5 = 0.5 and the channel's bias, 1 or 2. ONNX's reference evaluator and ONNX
#            Runtime agree with that.
# Output seen:
#   by definition                          1.5 2.5
#   reference evaluator                    1.5 2.5
#   ONNX Runtime                           1.5 2.5
#   OpenVINO, read_model                   1.5 1.5
#   OpenVINO, convert_model                1.5 2.5
#   OpenVINO, read_model, batch not asked  1.5 2.5
#   OpenVINO, read_model, float output     1.5 2.5
#   (the first value of either channel)
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
x = np.full((1, 1, 4, 4), 0.5, np.float32)


def network(*, asks: bool = True, quantized: bool = True) -> onnx.ModelProto:
    constants = {
        "weight": np.full((2, 1, 2, 2), 16, np.int8),
        "weight_scale": np.float32(1 / 64),
        "scale": np.float32(1 / 32),
        "zero": np.uint8(128),
        "bias": np.array([1, 2], np.float32),
        "shape": np.array([-1, 2, 4]),
        "token": np.zeros((1, 2, 1), np.float32),
        "one": np.array([1]),
    }
    grid = ["scale", "zero"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", *grid], ["x_codes"]),
        helper.make_node("DequantizeLinear", ["x_codes", *grid], ["x_values"]),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale"], ["weights"]),
        helper.make_node("Conv", ["x_values", "weights", "bias"], ["sums"], strides=[2, 2]),
    ]
    features = "sums"
    if quantized:
        features = "values"
        nodes += [
            helper.make_node("QuantizeLinear", ["sums", *grid], ["codes"]),
            helper.make_node("DequantizeLinear", ["codes", *grid], ["values"]),
        ]
    nodes.append(helper.make_node("Reshape", [features, "shape"], ["rows"]))
    token = "token"
    if asks:
        token = "tokens"
        nodes += [
            helper.make_node("Shape", ["x"], ["batch"], start=0, end=1),
            helper.make_node("Concat", ["batch", "one", "one"], ["sizes"], axis=0),
            helper.make_node("Expand", ["token", "sizes"], ["tokens"]),
        ]
    nodes.append(helper.make_node("Concat", [token, "rows"], ["y"], axis=2))
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2, 5])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def in_openvino(model: onnx.ModelProto, *, converted: bool = False) -> np.ndarray:
    onnx.save(model, PATH)
    core = ov.Core()
    read = ov.convert_model(PATH) if converted else core.read_model(PATH)
    # In float32 whatever the processor prefers, such that no other rounding comes in.
    return core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(x)[0]


model = network()
right, first = np.array([1.5, 2.5]), np.array([1.5, 1.5])
session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
defined = np.zeros((1, 2, 5))
defined[0, :, 1:] = (4 * 0.25 * 0.5 + np.array([1, 2]))[:, None]
answers = {
    "by definition": (defined, right),
    "reference evaluator": (ReferenceEvaluator(model).run(None, {"x": x})[0], right),
    "ONNX Runtime": (session.run(None, {"x": x})[0], right),
    "OpenVINO, read_model": (in_openvino(model), first),
    "OpenVINO, convert_model": (in_openvino(model, converted=True), right),
    "OpenVINO, read_model, batch not asked": (in_openvino(network(asks=False)), right),
    "OpenVINO, read_model, float output": (in_openvino(network(quantized=False)), right),
}
for name, (values, _) in answers.items():
    print(f"{name:<38}", *(f"{value:.1f}" for value in values[0, :, 1]))
print("(the first value of either channel)")

same = all(np.allclose(values[0, :, 1], seen, atol=1e-5) for values, seen in answers.values())
sys.exit(0 if same else "the behaviour is another than the one that is described")
PYTHON
