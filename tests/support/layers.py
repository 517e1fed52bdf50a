"""A student's layers, as tests look at them: by module, weight and fake-quantizer."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from zaq_plugin.fake_quantize import PWLQPerChannelFakeQuantize
from zaq_plugin.student import QuantLayer
from zaq_plugin.student.module_student import module_layer


def view_of(module: nn.Module) -> QuantLayer:
    """The view of a module whose weight is fake-quantized."""
    layer = module_layer("layer", module)
    assert layer is not None
    return layer


def float_weight(module: nn.Module) -> Tensor:
    """The float weight behind a module's fake-quantizer."""
    return view_of(module).parameter


def weight_fake_quant(module: nn.Module) -> PWLQPerChannelFakeQuantize:
    """The fake-quantizer on a module's weight."""
    return view_of(module).quantizer


def quantized_layers(student: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module whose weight is fake-quantized, with its name."""
    for name, module in student.named_modules():
        if module_layer(name, module) is not None:
            yield name, module
