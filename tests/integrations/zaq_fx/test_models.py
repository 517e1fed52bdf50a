"""Real architectures at random initialisation: every convolution and linear layer is reached."""

import pytest
import timm
import torch
from torch import nn

import zaq_fx
from zaq_plugin.pwlq import PWLQSpec

SPEC = PWLQSpec(bits=4, policy="gaussian")  # the fastest policy: this is about plumbing

MODELS = [
    "resnet18",
    "mobilenetv2_100",
    "mobilenetv3_small_050",
    "efficientnet_b0",
    "regnety_002",
    "densenet121",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "ghostnet_100",
]
LEFT_FLOAT: dict[str, list[str]] = {}
"""Layers that FX leaves float, by model: none."""


def create(name: str) -> nn.Module:
    torch.manual_seed(0)
    options = {"img_size": 64} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=10, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_layer_runs_on_int8_kernels(name):
    model = create(name)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    expected = model(images).detach()
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    prepared = zaq_fx.prepare(model, (images,), SPEC)
    teacher = zaq_fx.twin(prepared)(images)
    assert (teacher - expected).norm() < 1e-4 * expected.norm()
    zaq_fx.calibrate(prepared, [images])
    converted = zaq_fx.convert(prepared)
    audit = zaq_fx.audit(converted)
    assert [r.name for r in audit.skipped] == LEFT_FLOAT.get(name, [])
    assert sorted(r.name for r in audit) == sorted(names)
    assert all(r.kernel.startswith("int8 ") for r in audit.quantized)
    assert not any("batch_norm" in str(node.target) for node in converted.graph.nodes)
    out = converted(images)
    assert (out - expected).norm() < 0.7 * expected.norm()
    assert not torch.equal(out, expected)


@pytest.mark.slow
def test_residual_networks_with_zero_gamma_train():
    """timm starts the last BatchNorm of every block at gamma = 0."""
    model = timm.create_model("resnet18", num_classes=10)
    assert not model.layer1[0].bn2.weight.any()
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    prepared = zaq_fx.prepare(model, (images,), SPEC, qat=True)
    zaq_fx.calibrate(prepared, [images])
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        prepared(images).square().mean().backward()
        optimizer.step()
    assert all(torch.isfinite(p).all() for p in prepared.parameters())
    prepared.eval()
    converted = zaq_fx.convert(prepared)
    assert len(zaq_fx.audit(converted).quantized) == 21
    assert torch.isfinite(converted(images)).all()


def test_same_padding_cannot_be_traced_and_says_so():
    model = timm.create_model("tf_efficientnet_lite0", num_classes=10).eval()
    with pytest.raises(ValueError, match=r"cannot trace EfficientNet.*zaq_pt2e takes"):
        zaq_fx.prepare(model, (torch.randn(1, 3, 64, 64),), SPEC)
