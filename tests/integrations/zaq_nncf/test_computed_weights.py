"""Weights that are computed at every call, and models in wrappers, in NNCF."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm

import zaq_nncf
from zaq_plugin.pwlq import UniformSpec, sqnr_db

WAYS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm by hooks": spectral_norm,
    "pruned": lambda m: prune.l1_unstructured(m, "weight", amount=0.3),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_computed_is_quantized_and_told(way):
    torch.manual_seed(0)
    wrap, x = WAYS[way], torch.rand(8, 3, 8, 8)
    model = nn.Sequential(wrap(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    right = model(x).detach()
    quantized = zaq_nncf.quantize(model, list(x.split(4)), UniformSpec(8, "symmetric"))
    assert sqnr_db(right, quantized(x).detach()) > 30
    stripped = zaq_nncf.strip(quantized)
    assert sqnr_db(quantized(x).detach(), stripped(x).detach()) > 60
    torch.onnx.export(stripped, (x,), dynamo=True, verbose=False)
    reasons = {r.name: (r.quantized, r.reason) for r in zaq_nncf.audit(quantized).records}
    remark = "its weight was computed at every call; what it computed is quantized"
    assert reasons == {"model.0": (True, remark), "model.2": (True, None)}


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrapped_models_are_quantized_as_the_model_inside(wrap):
    torch.manual_seed(0)
    x = torch.rand(8, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    models = [
        zaq_nncf.quantize(m, list(x.split(4)), UniformSpec(8, "symmetric"))
        for m in (model, wrap(model))
    ]
    torch.testing.assert_close(models[1](x), models[0](x), rtol=0, atol=0)
