"""Files that every runtime reads, and old ones, which still unpack."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

import zaq_onnx
from zaq_onnx.files import load
from zaq_onnx.graph import Graph
from zaq_onnx.runtimes import openvino_kernels, ort_session, run_ort
from zaq_onnx.weights import weights_of
from zaq_plugin import PWLQSpec
from zaq_plugin.ptq import calibrate, simulate

OLD = Path(__file__).with_name("data") / "uint4.onnx"


def test_files_of_before_still_unpack(tmp_path: Path) -> None:
    """Codes in UINT4, a table by BitShift in UINT32, Slice without axes."""
    kinds = {node.op_type for node in onnx.load(OLD).graph.node}
    assert "BitShift" in kinds
    (weight,) = weights_of(Graph(load(OLD)))
    assert weight.packed
    (values,) = ort_session(OLD).run(None, {"x": np.zeros(1, np.float32)})
    np.testing.assert_array_equal(weight.integers, values)
    assert len(np.unique(values)) > 17
    plain, again = tmp_path / "plain.onnx", tmp_path / "again.onnx"
    zaq_onnx.unpack(OLD, plain)
    zaq_onnx.pack(plain, again)
    (after,) = weights_of(Graph(load(again)))
    np.testing.assert_array_equal(after.integers, values)


@pytest.fixture(scope="module")
def small(case_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in the fewest bytes."""
    case, path = case_of("pt2e"), tmp_path_factory.mktemp("small") / "small.onnx"
    zaq_onnx.export(case.model, (case.images,), path, portable=False, reduce_range=True)
    return path


@pytest.mark.slow
def test_both_forms_give_the_same_answers_bit_for_bit(pt2e_case: Any, small: Path) -> None:
    both = [run_ort(ort_session(p), (pt2e_case.images,))[0] for p in (pt2e_case.packed, small)]
    np.testing.assert_array_equal(*both)
    assert onnx.load(small).opset_import[0].version == 21
    assert any(t.data_type == onnx.TensorProto.UINT4 for t in onnx.load(small).graph.initializer)
    zaq_onnx.verify(small, pt2e_case.model, pt2e_case.images).require()


def test_portable_files_ask_for_old_operators_and_name_the_batch(pt2e_case: Any) -> None:
    model = onnx.load(pt2e_case.packed)
    assert (model.opset_import[0].version, model.ir_version) == (19, 9)
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_the_reference_of_onnx_runs_portable_files(pt2e_case: Any) -> None:
    images = pt2e_case.images.numpy()
    (output,) = ReferenceEvaluator(str(pt2e_case.packed)).run(None, {"x": images})
    (plain,) = run_ort(ort_session(pt2e_case.packed, optimize=False), (images,))
    np.testing.assert_allclose(output, plain, atol=1e-4)


def zero_points(path: Path) -> list[str]:
    model = onnx.load(path)
    weights = {w.node.output[0] for w in weights_of(Graph(model))}
    nodes = model.graph.node
    return [n.input[2] for n in nodes if n.op_type == "DequantizeLinear" and n.output[0] in weights]


def test_no_two_weights_share_a_zero_point(pt2e_case: Any, small: Path) -> None:
    """Or ONNX Runtime refuses to take saturation away, and OpenVINO's converter leaves floats."""
    own = zero_points(pt2e_case.packed)
    assert len(set(own)) == len(own) == 5
    assert len(set(zero_points(small))) < 5
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(pt2e_case.packed), options)
    assert session.run(None, {"x": pt2e_case.images.numpy()})[0].shape == (8, 10)


@pytest.mark.slow
def test_openvinos_converter_keeps_all_layers_in_integers(pt2e_case: Any) -> None:
    import openvino

    model = openvino.convert_model(pt2e_case.packed)
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = openvino_kernels(compiled)
    layers = {k: n for k, n in kinds.items() if k.startswith(("Convolution", "FullyConnected"))}
    assert sum(n for k, n in layers.items() if k.endswith(("u8", "i8"))) == 5, dict(layers)


def test_the_smallest_form_needs_operators_with_four_bits(pt2e_case: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="opset 19, but UINT4 needs opset 21 or newer"):
        zaq_onnx.pack(pt2e_case.plain, tmp_path / "a.onnx", portable=False)


class Tokens(nn.Module):
    """The beginning of a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.last = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.places = nn.Parameter(torch.randn(1, 10, 8))
        nn.init.uniform_(self.patches.bias, 0.5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        return self.last(x)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    torch.manual_seed(0)
    model, images = Tokens().eval(), torch.randn(8, 3, 12, 12)
    student = simulate(model, PWLQSpec())
    calibrate(student, [images])
    path = tmp_path_factory.mktemp("tokens") / "tokens.onnx"
    zaq_onnx.export(student, (images,), path, calibration=[images])
    return path, images


def test_a_token_has_its_batch_without_a_shape(tokens: tuple[Path, Tensor]) -> None:
    path, images = tokens
    assert not {"Shape", "Expand"} & {node.op_type for node in onnx.load(path).graph.node}
    session = ort_session(path)
    (together,) = run_ort(session, (images,))
    apart = np.concatenate([run_ort(session, (image[None],))[0] for image in images])
    np.testing.assert_array_equal(together, apart)


def test_openvino_keeps_biases_of_convolutions_beside_tokens(tokens: tuple[Path, Tensor]) -> None:
    """Version 2026.4 gives all channels one in `read_model` where a graph asks for its batch."""
    import openvino

    path, images = tokens
    core = openvino.Core()
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(path), "CPU", hints)
    (plain,) = run_ort(ort_session(path, optimize=False), (images,))
    np.testing.assert_allclose(compiled(images.numpy())[0], plain, atol=0.03)


def test_a_gelu_is_one_kernel(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)).eval()
    rows = torch.randn(4, 5, 8)
    student = simulate(model, PWLQSpec())
    calibrate(student, [rows])
    path, seen = tmp_path / "gelu.onnx", tmp_path / "seen.onnx"
    zaq_onnx.export(student, (rows,), path, calibration=[rows])
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(seen)
    onnxruntime.InferenceSession(str(path), options)
    kinds = {node.op_type for node in onnx.load(seen).graph.node}
    assert "Erf" not in kinds
    assert {"Gelu", "BiasGelu"} & kinds
    (answers,) = ReferenceEvaluator(str(path)).run(None, {"input": rows.numpy()})
    np.testing.assert_allclose(answers, student(rows).detach().numpy(), atol=0.02)
