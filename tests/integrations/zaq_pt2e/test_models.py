"""Real architectures, randomly initialised, BatchNorm statistics perturbed, small images."""

import pytest
import torch
from networks import random_timm_model
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e

from zaq_plugin.pwlq import PWLQSpec
from zaq_pt2e import PWLQQuantizer, audit, freeze_ranges, set_training, twin

timm = pytest.importorskip("timm", reason="needs the extra timm")

# Convolutions and linear layers of each. A DenseNet keeps 62 BatchNorms: they stand behind
# concatenations and pooling, where there is nothing to fold them into.
MODELS = {
    "resnet18": 21,
    "mobilenetv2_100": 53,
    "mobilenetv3_small_050": 54,
    "efficientnet_b0": 82,
    "regnety_002": 71,
    "densenet121": 121,
    "convnext_atto": 41,
    "vit_tiny_patch16_224": 50,
    "ghostnet_100": 96,
    "tf_efficientnet_lite0": 50,
}
# A fast policy: what is tested is which layers are found, not the best levels.
SPEC = PWLQSpec(bits=4, policy="gaussian")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_convolution_and_linear_layer_is_quantized(name: str) -> None:
    model, images = random_timm_model(name)
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    expected = {k for k, m in model.named_modules() if isinstance(m, kinds)}
    assert len(expected) == MODELS[name]
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    exported = torch.export.export(model, (images,), dynamic_shapes=shapes).module()
    prepared = prepare_pt2e(exported, PWLQQuantizer(SPEC))
    with torch.no_grad():
        reference = model(images)
        teacher = twin(prepared)(images)
        assert (teacher - reference).norm() <= 1e-4 * reference.norm()
        prepared(images)
        converted = convert_pt2e(prepared)
        records = audit(converted)
        assert {r.name for r in records.quantized} == expected
        assert records.skipped == []
        folded = [n for n in converted.graph.nodes if "batch_norm" in str(n.target)]
        assert len(folded) == (62 if name == "densenet121" else 0)
        more = torch.randn(3, 3, 32, 32)
        error = (converted(more) - model(more)).norm() / model(more).norm()
    assert error < 0.6


@pytest.mark.slow
def test_a_residual_network_trains_from_timm_s_zero_gammas() -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet10t").eval()
    gammas = [m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert any(bool((g == 0).all()) for g in gammas)
    images = torch.randn(4, 3, 32, 32)
    exported = torch.export.export(model, (images,)).module()
    prepared = prepare_qat_pt2e(exported, PWLQQuantizer(SPEC, qat=True))
    with torch.no_grad():
        reference = model(images)
        assert (twin(prepared)(images) - reference).norm() <= 1e-4 * reference.norm()
        set_training(prepared, True)
        prepared(images)
    freeze_ranges(prepared)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(prepared(images), torch.arange(4)).backward()
        optimizer.step()
    assert all(bool(torch.isfinite(p).all()) for p in prepared.parameters())
    set_training(prepared, False)
    with torch.no_grad():
        expected = prepared(images)
        converted = convert_pt2e(prepared)
        assert (converted(images) - expected).norm() <= 0.02 * expected.norm()
    assert not [n for n in converted.graph.nodes if "batch_norm" in str(n.target)]
    assert audit(converted).skipped == []
