#!/usr/bin/env bash
# OpenCV splits along axis 1 where an ONNX Split names no axis; the specification says axis 0.
#
# Versions:  opencv-python-headless 5.0.0.93 (dnn, both engines), onnxruntime 1.32.0, onnx 1.23.2,
#            numpy 2.4.6; Python 3.11 or newer.
# Input:     Split of a 4x6 tensor in two halves without the attribute `axis`: once by num_outputs,
#            and once by the sizes [2, 2].
# Behaviour: by num_outputs, the halves are the columns: the shape and the values are wrong, and
#            nothing is reported. By sizes, the model is refused, as 2 + 2 is not 6. With axis=0
#            written out, both are right.
# Expected:  the two halves of the rows, shape 2x6. Split's `axis` is optional, and 0 is its default
#            in all versions of the operator. ONNX's shape inference and ONNX Runtime agree.
# Output seen:
#   num_outputs, no axis: ONNX Runtime: rows, 2x6; OpenCV, new engine: columns, 4x3; OpenCV, classic engine: columns, 4x3
#   num_outputs, axis 0: ONNX Runtime: rows, 2x6; OpenCV, new engine: rows, 2x6; OpenCV, classic engine: rows, 2x6
#   sizes, no axis: ONNX Runtime: rows, 2x6; OpenCV, new engine: refused; OpenCV, classic engine: refused
#   sizes, axis 0: ONNX Runtime: rows, 2x6; OpenCV, new engine: rows, 2x6; OpenCV, classic engine: rows, 2x6
# Exits with 0 where it is seen again, else with another status.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    onnx==1.23.2 onnxruntime==1.32.0 opencv-python-headless==5.0.0.93 numpy==2.4.6

"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import sys

import cv2
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

x = np.arange(24, dtype=np.float32).reshape(4, 6) ** 2


def difference(sizes: bool, axis: int | None) -> onnx.ModelProto:
    """The first half less the second."""
    attributes = {} if axis is None else {"axis": axis}
    if not sizes:
        attributes["num_outputs"] = 2
    graph = helper.make_graph(
        [
            helper.make_node("Split", ["x", "sizes"] if sizes else ["x"], ["a", "b"], **attributes),
            helper.make_node("Sub", ["a", "b"], ["y"]),
        ],
        "halves",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 6])],
        [numpy_helper.from_array(np.array([2, 2], np.int64), "sizes")] if sizes else [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def in_opencv(model: onnx.ModelProto, engine: int) -> np.ndarray | None:
    """The answer, or None where the model is refused."""
    try:
        net = cv2.dnn.readNetFromONNX(np.frombuffer(model.SerializeToString(), np.uint8), engine)
        net.setInput(x)
        return net.forward()
    except cv2.error:
        return None


def in_onnxruntime(model: onnx.ModelProto) -> np.ndarray:
    session = ort.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


rows, columns = x[:2] - x[2:], x[:, :3] - x[:, 3:]


def meaning(answer: np.ndarray | None) -> str:
    if answer is None:
        return "refused"
    for name, known in {"rows": rows, "columns": columns}.items():
        if np.array_equal(answer, known):
            return f"{name}, {answer.shape[0]}x{answer.shape[1]}"
    return f"other, {answer.shape}"


seen = {
    ("num_outputs", "no axis"): "columns, 4x3",
    ("num_outputs", "axis 0"): "rows, 2x6",
    ("sizes", "no axis"): "refused",
    ("sizes", "axis 0"): "rows, 2x6",
}
same = True
for (how, axis), in_cv in seen.items():
    model = difference(how == "sizes", 0 if axis == "axis 0" else None)
    answers = {
        "ONNX Runtime": meaning(in_onnxruntime(model)),
        "OpenCV, new engine": meaning(in_opencv(model, cv2.dnn.ENGINE_NEW)),
        "OpenCV, classic engine": meaning(in_opencv(model, cv2.dnn.ENGINE_CLASSIC)),
    }
    print(f"{how}, {axis}: " + "; ".join(f"{name}: {text}" for name, text in answers.items()))
    same &= list(answers.values()) == ["rows, 2x6", in_cv, in_cv]
if not same:
    print("the behaviour is another than the one that is described")
sys.exit(not same)
PYTHON
