#!/usr/bin/env bash
# ONNX Runtime loses the rounding of a coarse grid that stands behind a finer one.
#
# Versions:  onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6; Python 3.11 or newer.
# Input:     Quantize/Dequantize with scale 1/128, then the same again with scale 1/8, both uint8
#            with zero point 0. It is how a 4-bit grid behind an 8-bit one is written.
# Behaviour: with any graph optimization (they are on by default) the two pairs become one, which
#            keeps the first scale; the values are rounded to multiples of 1/128 alone.
# Expected:  multiples of 1/8. ONNX defines QuantizeLinear as
#            saturate(round(x / y_scale) + y_zero_point), and DequantizeLinear as
#            (x - x_zero_point) * x_scale; the second pair thus rounds to its own scale. ONNX's
#            reference evaluator and ONNX Runtime without optimization do so. ONNX Runtime's
#            documentation calls its basic optimizations "semantics-preserving".
# Why:       the rewrite keeps the common range of the two pairs, not the coarser of their steps.
# Output seen (values times 128):
#   input                    0    3    7   10   23   25   60  101
#   by definition            0    0    0   16   16   32   64   96
#   reference evaluator      0    0    0   16   16   32   64   96
#   ONNX Runtime, off        0    0    0   16   16   32   64   96
#   ONNX Runtime, basic      0    3    7   10   23   25   60  101
#   ONNX Runtime, default    0    3    7   10   23   25   60  101
# Exits with 0 where it is seen again, else with another status.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6

"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

shape = [8]
graph = helper.make_graph(
    [
        helper.make_node("QuantizeLinear", ["x", "fine", "zero"], ["a"]),
        helper.make_node("DequantizeLinear", ["a", "fine", "zero"], ["b"]),
        helper.make_node("QuantizeLinear", ["b", "coarse", "zero"], ["c"]),
        helper.make_node("DequantizeLinear", ["c", "coarse", "zero"], ["y"]),
    ],
    "two_grids",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    [
        numpy_helper.from_array(np.float32(1 / 128), "fine"),
        numpy_helper.from_array(np.float32(1 / 8), "coarse"),
        numpy_helper.from_array(np.uint8(0), "zero"),
    ],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
onnx.checker.check_model(model, full_check=True)

# All are on the fine grid, and none halfway between two steps of the coarse one.
x = np.array([0, 3, 7, 10, 23, 25, 60, 101], np.float32) / 128
by_definition = np.round(x * 8) / 8


def run(level: str) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


answers = {
    "input": x,
    "by definition": by_definition,
    "reference evaluator": ReferenceEvaluator(model).run(None, {"x": x})[0],
    "ONNX Runtime, off": run("ORT_DISABLE_ALL"),
    "ONNX Runtime, basic": run("ORT_ENABLE_BASIC"),
    "ONNX Runtime, default": run("ORT_ENABLE_ALL"),
}
for name, values in answers.items():
    print(f"{name:<21}", *(f"{value * 128:4.0f}" for value in values))

right = ["reference evaluator", "ONNX Runtime, off"]
wrong = ["ONNX Runtime, basic", "ONNX Runtime, default"]
same = all(np.array_equal(answers[name], by_definition) for name in right)
same &= all(np.array_equal(answers[name], x) for name in wrong)
sys.exit(0 if same else "the behaviour is another than the one that is described")
PYTHON
