"""NNCF's quantize_pt2e would make PWLQ quantizers uniform; it is told so."""

import nncf
import pytest
import torch
from nncf.experimental.torch.fx import quantize_pt2e
from torch import Tensor, nn
from torchao.quantization.pt2e.quantizer import Quantizer
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

from zaq_plugin import PWLQSpec
from zaq_pt2e import PWLQQuantizer, with_pwlq


def program(model: nn.Module, images: Tensor) -> torch.fx.GraphModule:
    return torch.export.export(model, (images,), strict=True).module()


def stock() -> Quantizer:
    quantizer = X86InductorQuantizer()
    return quantizer.set_global(get_default_x86_inductor_quantization_config())


@pytest.mark.parametrize(
    "quantizer",
    [PWLQQuantizer(PWLQSpec(bits=4)), with_pwlq(stock(), PWLQSpec(bits=4))],
    ids=["PWLQQuantizer", "PWLQDecorated"],
)
def test_refused_with_the_routes_that_work(
    net: nn.Module, images: Tensor, quantizer: Quantizer
) -> None:
    with pytest.raises(ValueError, match="would make the weights uniform int8") as caught:
        quantize_pt2e(program(net, images), quantizer, nncf.Dataset([images]), subset_size=1)
    text = str(caught.value)
    assert type(quantizer).__name__ in text
    for way in ("prepare_pt2e", "convert_pt2e", "zaq_nncf.quantize"):
        assert way in text


def test_other_quantizers_still_pass(net: nn.Module, images: Tensor) -> None:
    quantized = quantize_pt2e(program(net, images), stock(), nncf.Dataset([images]), subset_size=1)
    expected = net(images)
    assert (quantized(images) - expected).norm() < 0.2 * expected.norm()
