"""Files of formats other than the first two: weights are the student's, packed and not."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from networks import Net, perturb

import zaq_onnx
from zaq_plugin.ptq import calibrate, fold_batch_norm, simulate
from zaq_plugin.pwlq import quantize, spec_from_name
from zaq_plugin.student import student_of


def int8_weights(path: Path) -> list[np.ndarray]:
    """All int8 initializers of more than one dimension, codes unfolded."""
    graph = onnx.load(path).graph
    arrays = [onnx.numpy_helper.to_array(t) for t in graph.initializer]
    return [a for a in arrays if a.dtype == np.int8 and a.ndim > 1]


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "text",
    ["pot4", *(pytest.param(text, marks=SLOW) for text in ("codebook3", "pot3", "codebook4"))],
)
def test_weights_of_a_file_are_the_students(text: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    wide = torch.nn.Sequential(perturb(Net(64)), torch.nn.Linear(64, 256), torch.nn.Linear(256, 8))
    images = torch.randn(8, 3, 17, 17)
    spec = spec_from_name(text)
    student = simulate(fold_batch_norm(wide.eval(), (images,)), spec, 8, example_inputs=(images,))
    calibrate(student, [images])
    expected = [
        quantize(layer.weight, layer.quantizer.spec, layer.axis, edges=layer.edges)
        for layer in student_of(student).layers().values()
    ]
    packed = zaq_onnx.export(student, (images,), tmp_path / "packed.onnx").path
    zaq_onnx.unpack(packed, tmp_path / "plain.onnx")
    found = int8_weights(tmp_path / "plain.onnx")
    for q in expected:
        integers = q.integer_weight().numpy()
        assert any(
            np.array_equal(other, integers) or np.array_equal(other.T, integers) for other in found
        )
    zaq_onnx.verify(packed, student, images).require()
    stored = {layer.stored_bits for layer in zaq_onnx.info(packed).layers}
    assert stored <= {spec.stored_bits, 8}  # small layers stay int8
    assert spec.stored_bits in stored
