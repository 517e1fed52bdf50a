"""Every kind of quantized model becomes a file with its own levels, run in integers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

import zaq_onnx
from zaq_onnx.graph import Graph
from zaq_onnx.inspection import float_operations
from zaq_onnx.runtimes import optimized, ort_session, run_openvino, run_ort
from zaq_plugin.ptq import fold_batch_norm
from zaq_plugin.pwlq import PWLQSpec, UniformSpec, quantize

Make = dict[str, Callable[..., Any]]
LAYERS = ["stem.0", "body", "wide", "short", "fc"]
SPEC = PWLQSpec(bits=3)


def weights(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Integers and scales by layer, read without help: initializers that DequantizeLinear reads."""
    graph = onnx.load(path).graph
    values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    return {
        node.input[0].removesuffix(".weight"): (values[node.input[0]], values[node.input[1]])
        for node in graph.node
        if node.op_type == "DequantizeLinear" and values.get(node.input[0], np.zeros(1)).ndim >= 2
    }


@pytest.mark.slow
def test_the_file_holds_the_levels_of_the_format(case: Any, make: Make) -> None:
    """Quantizing the folded float weights anew gives the file's integers and scales.

    Uniform 8 bits for the depthwise layer in simulation, which keeps those.
    """
    model, images = make["network"]()
    folded = fold_batch_norm(model, (images,))
    stored = weights(case.whole)
    assert list(stored) == LAYERS
    for name, (integers, scale) in stored.items():
        floats = folded.get_submodule(name).weight.detach()
        uniform = case.name == "simulated" and name == "body"
        expected = quantize(floats, UniformSpec(8) if uniform else SPEC)
        if name == "stem.0" and case.name not in ("simulated",):
            # Hosts fold BatchNorm by themselves, with other roundings of the last bit, which may
            # tip the choice between two grids of a channel: each has that of one of two foldings.
            again = quantize(fuse_conv_bn_eval(*model.stem[:2]).weight.detach(), SPEC)
            foldings = (expected, again)
            same = [np.isclose(scale, q.scale.numpy().reshape(-1), rtol=1e-5) for q in foldings]
            assert np.logical_or(*same).all(), scale
            for channels, q in zip(same, foldings, strict=True):
                apart = np.abs(integers - q.integer_weight().numpy())[channels]
                assert apart.max(initial=0) <= 1
            continue
        np.testing.assert_array_equal(scale, expected.scale.numpy(), err_msg=name)
        np.testing.assert_array_equal(integers, expected.integer_weight().numpy(), err_msg=name)


@pytest.mark.slow
def test_both_runtimes_agree_with_the_model(case: Any) -> None:
    report = zaq_onnx.verify(case.packed, case.model, case.images)
    assert report.ok, str(report)
    whole = zaq_onnx.verify(case.whole, case.model, case.images)
    assert whole.ok, str(whole)
    assert [r.name for r in report.runtimes] == ["onnxruntime", "openvino"]
    assert report.layers == len(LAYERS)
    assert all(r.agreement >= 0.7 for r in report.runtimes)


def test_inference_is_in_integers_from_end_to_end(case: Any) -> None:
    """Read from ONNX Runtime's optimized graph."""
    names = float_operations(Graph(optimized(case.packed)))
    if case.name.startswith("fx"):  # torch.ao requantizes the pooled tensor once more
        assert all(name.startswith(("QuantizeLinear", "DequantizeLinear")) for name in names)
        assert len(names) <= 2
    else:
        assert names == []


def test_batches_of_any_size_run(pt2e_case: Any) -> None:
    session = ort_session(pt2e_case.packed)
    whole = run_ort(session, (pt2e_case.images,))[0]
    ones = [run_ort(session, (image[None],))[0] for image in pt2e_case.images]
    np.testing.assert_array_equal(np.concatenate(ones), whole)


@pytest.mark.slow
def test_the_model_is_not_changed(make: Make, tmp_path: Path) -> None:
    student, (_, images) = make["simulated"](), make["network"]()
    before = {k: v.clone() for k, v in student.state_dict().items()}
    output = student(images)
    zaq_onnx.export(student, (images,), tmp_path / "a.onnx")
    assert student.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    assert torch.equal(student(images), output)


def test_the_same_model_gives_the_same_bytes(pt2e_case: Any, tmp_path: Path) -> None:
    path = tmp_path / "again.onnx"
    zaq_onnx.export(pt2e_case.model, (pt2e_case.images,), path, reduce_range=True)
    assert path.read_bytes() == pt2e_case.packed.read_bytes()


def test_layers_and_sizes_are_told(case: Any) -> None:
    exported = case.exported
    assert exported.bytes == case.packed.stat().st_size
    assert exported.int8_bytes == case.plain.stat().st_size
    assert [r.name for r in exported.layers] == LAYERS
    assert exported.layers["wide"].mac_bits == 3
    assert exported.layers["wide"].stored_bits == 4
    assert "5 of 5 layers in int8" in str(exported)


@pytest.mark.slow
def test_narrow_activations_stay_on_their_grid(case_of: Callable[[str], Any]) -> None:
    """At 4 bits no integer behind a QuantizeLinear may exceed 15: ask the runtime for them all."""
    case = case_of("pt2e-a4")
    model = onnx.load(case.packed)
    narrow = [n.output[0] for n in model.graph.node if n.op_type == "Clip"]
    assert len(narrow) == 3  # the inputs of body and short (one tensor), wide and fc
    for name in narrow:
        model.graph.output.append(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None)
        )
    outputs = run_ort(ort_session(model), (3 * case.images,))[1:]
    assert max(int(codes.max()) for codes in outputs) == 15


def refused(model: Any, text: str, kind: type[Exception] = ValueError, **options: Any) -> None:
    with pytest.raises(kind, match=text):
        zaq_onnx.export(model, (torch.zeros(2, 3, 14, 14),), "never.onnx", **options)
    assert not Path("never.onnx").exists()


def test_models_that_cannot_be_shipped_are_refused(make: Make) -> None:
    model, images = make["network"]()
    refused(model, "nothing in this model is quantized")
    refused("model.onnx", "expected a quantized nn.Module; got str", TypeError)
    from zaq_plugin.ptq import simulate

    folded = fold_batch_norm(model, (images,))
    refused(simulate(folded, SPEC), "has no range yet. Run zaq_plugin.ptq.calibrate")
    refused(make["simulated"](PWLQSpec(bits=4)), "PWLQ activations .* are simulated")
    floating = make["simulated"](8, PWLQSpec(bits=3, grid="float"))
    refused(floating, "has float levels, which no int8 kernel computes with")
    wide = make["simulated"](8, UniformSpec(8, "asymmetric"))
    refused(wide, r"has integers up to .* beyond int8. Use .* Request\(..., int8=True\)")


def test_prepared_and_packed_models_are_refused(make: Make) -> None:
    import zaq_fx
    import zaq_pt2e

    model, images = make["network"]()
    prepared = zaq_fx.prepare(model, (images,), SPEC)
    refused(prepared, "it is prepared, but not converted. Call convert_fx")
    refused(zaq_pt2e.pack(make["pt2e"]()), r"Call zaq_pt2e.unpack\(model\) first")


def test_arguments_are_checked(pt2e_case: Any) -> None:
    refused(pt2e_case.model, "opset must be from 19 .* got 18", opset=18)
    refused(pt2e_case.model, "opset must be from 19 .* got 99", opset=99)
    small = "opset must be from 21 .the first with codes of 4 bits. .* got 20"
    refused(pt2e_case.model, small, opset=20, portable=False)
    refused(pt2e_case.model, "opset must be an int", TypeError, opset="21")
    with pytest.raises(TypeError, match="must be a tuple of inputs, such as .* got Tensor"):
        zaq_onnx.export(pt2e_case.model, pt2e_case.images, "never.onnx")  # type: ignore[arg-type]
    refused(pt2e_case.model, "calibration holds no batch", calibration=[])


class FloatWeight(nn.Module):
    """Quantized activations around a float weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.register_buffer("scale", self.first.weight.detach().abs().amax((1, 2, 3)) / 127)
        self.register_buffer("zero", torch.zeros(4, dtype=torch.int32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grid = (0.05, 128, 0, 255)
        weight = torch.fake_quantize_per_channel_affine(
            self.first.weight, self.scale, self.zero, 0, -127, 127
        )
        x = nn.functional.conv2d(torch.fake_quantize_per_tensor_affine(x, *grid), weight)
        x = self.second(torch.fake_quantize_per_tensor_affine(x, *grid))
        return torch.fake_quantize_per_tensor_affine(x, *grid)


def test_a_float_weight_between_quantized_activations_is_refused() -> None:
    refused(FloatWeight().eval(), "have float weights between quantized activations")


@pytest.mark.slow
def test_newer_opsets_work(make: Make, tmp_path: Path) -> None:
    student, (_, images) = make["simulated"](), make["network"]()
    path = tmp_path / "new.onnx"
    zaq_onnx.export(student, (images,), path, opset=22)
    assert onnx.load(path).opset_import[0].version == 22
    assert zaq_onnx.verify(path, runtimes=("onnxruntime",)).ok


@pytest.mark.slow
def test_uniform_weights_are_packed_too(make: Make, tmp_path: Path) -> None:
    """Uniform codes of four bits: half a byte a weight, and sixteen levels a channel."""
    student, (_, images) = make["simulated"](8, UniformSpec(4, "asymmetric")), make["network"]()
    zaq_onnx.export(student, (images,), tmp_path / "u.onnx")
    layers = {layer.name: layer for layer in zaq_onnx.info(tmp_path / "u.onnx").layers}
    assert layers["wide"].mac_bits == layers["wide"].stored_bits == 4
    assert layers["wide"].bytes == 32 * (144 // 2 + 16)


def test_openvino_runs_packed_files_like_int8_files(pt2e_case: Any) -> None:
    from zaq_onnx.runtimes import openvino_compiled, openvino_kernels

    both = [openvino_compiled(path) for path in (pt2e_case.packed, pt2e_case.plain)]
    first, second = (run_openvino(model, (pt2e_case.images,))[0] for model in both)
    np.testing.assert_array_equal(first, second)
    assert openvino_kernels(both[0]) == openvino_kernels(both[1])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda x: (x * 50).to(torch.uint8), "(8, 3, 14, 14) of uint8. Its weights are float32: "),
        (lambda x: x[:, :1], "(8, 1, 14, 14) of float32. Pass batches of the shape that it was"),
    ],
)
def test_example_inputs_that_the_model_does_not_take_are_told(
    make: Any, tmp_path: Path, change: Any, text: str
) -> None:
    student, (_, images) = make["simulated"](), make["network"]()
    with pytest.raises(ValueError, match="does not take the batch that it was given") as caught:
        zaq_onnx.export(student, (change(images),), tmp_path / "x.onnx")
    assert text in str(caught.value)
    assert not (tmp_path / "x.onnx").exists()
