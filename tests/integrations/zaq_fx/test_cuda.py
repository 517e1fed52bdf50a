"""Training on a GPU, then int8 kernels on the CPU."""

import pytest
import torch

import zaq_fx
from zaq_fx.layers import layers_of
from zaq_plugin.pwlq import PWLQSpec

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_what_a_gpu_has_trained_is_converted_exactly(make_net, images):
    there = images.cuda()
    prepared = zaq_fx.prepare(make_net().cuda(), (there,), PWLQSpec(bits=4), qat=True)
    zaq_fx.calibrate(prepared, [there])
    optimizer = torch.optim.SGD(prepared.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        prepared(there).square().mean().backward()
        optimizer.step()
    assert {p.device.type for p in prepared.state_dict().values()} == {"cuda"}
    prepared.eval()
    trained = prepared(there).cpu()
    prepared.cpu()
    expected = {layer.name: layer.quantized().dequantize() for layer in layers_of(prepared)}
    converted = zaq_fx.convert(prepared, reference=True)
    for name, weight in expected.items():
        module = converted.get_submodule(name)
        first = module[0] if isinstance(module, torch.nn.Sequential) else module
        assert torch.equal(zaq_fx.integer_weight(first).dequantize(), weight), name
    assert (converted(images) - trained).norm() < 0.05 * trained.norm()
