"""Real architectures, randomly initialised, BatchNorm statistics perturbed, small images."""

import warnings

import nncf
import openvino
import pytest
import torch
from networks import random_timm_model
from torch import nn

import zaq_nncf
from zaq_nncf.static import StaticActivation
from zaq_plugin import PWLQSpec

pytest.importorskip("timm", reason="needs the extra timm")

# Convolutions and linear layers of each, and how many of them NNCF leaves float: those in
# squeeze-and-excitation blocks are on its own list.
MODELS = {
    "resnet18": (21, 0),
    "mobilenetv2_100": (53, 0),
    "efficientnet_b0": (82, 32),
    "mobilenetv3_small_050": (54, 18),
    "vit_tiny_patch16_224": (50, 0),
}
# A fast policy: what is tested is which layers are found, not the best levels.
SPEC = PWLQSpec(bits=4, policy="gaussian")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_quantize_train_strip_export_run(name: str) -> None:
    model, images = random_timm_model(name)
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    expected = {k for k, m in model.named_modules() if isinstance(m, kinds)}
    assert (len(expected), sum(".se." in n for n in expected)) == MODELS[name]
    # What NNCF wants to be told; it would quantize LayerNorm's scales otherwise.
    options = {"model_type": nncf.ModelType.TRANSFORMER} if "vit" in name else {}
    student = zaq_nncf.quantize(model, [images], SPEC, **options)
    records = zaq_nncf.audit(student)
    assert {r.name for r in records} == expected
    assert {r.name for r in records.skipped} == {n for n in expected if ".se." in n}
    assert all("squeeze-and-excitation" in r.reason for r in records.skipped)
    assert all(r.activation == "uniform 8 bits per tensor" for r in records.quantized)
    with torch.no_grad():
        reference = model(images)
        teacher = zaq_nncf.twin(student)(images)
    assert (teacher - reference).norm() <= 1e-3 * reference.norm()

    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], 1e-4)
    student.train()(images).square().mean().backward()
    optimizer.step()
    student.eval()

    stripped = zaq_nncf.strip(student)
    assert len(zaq_nncf.audit(stripped).quantized) == len(records.quantized)
    with torch.no_grad():
        expected_output = student(images)
        assert torch.equal(stripped(images), expected_output)
        exported = torch.export.export(stripped, (images,)).module()
        assert torch.equal(exported(images), expected_output)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.trace", FutureWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        converted = openvino.convert_model(stripped, example_input=images)
    out = torch.from_numpy(openvino.compile_model(converted, "CPU")(images.numpy())[0])
    # A value between two levels may fall to either; a deep random network carries that on.
    assert (out - expected_output).norm() <= 0.3 * expected_output.norm()
    assert sum(isinstance(m, StaticActivation) for m in stripped.modules()) >= 10
