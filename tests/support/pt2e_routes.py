"""Ways from a float model to a quantized one, and how far apart the two are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e

from zaq_plugin.pwlq import UniformSpec
from zaq_pt2e import PWLQQuantizer, calibrate, set_training


def sqnr(right: Any, got: Any) -> float:
    """Signal over error in dB: the lowest over all outputs, infinite where they are equal."""
    if not isinstance(right, Tensor):
        return min(sqnr(a, b) for a, b in zip(right, got, strict=True))
    right, got = right.detach().double(), got.detach().double()
    error = (right - got).square().sum()
    return float(10 * torch.log10(right.square().sum() / error))


def seven_bits(qat: bool = False, **options: Any) -> PWLQQuantizer:
    """Seven bits everywhere: integer kernels of no processor saturate."""
    options = {"input_bits": 7, "other_bits": 7, **options}
    return PWLQQuantizer(UniformSpec(7, "symmetric"), 7, qat=qat, **options)


def prepare(
    model: nn.Module, images: Tensor, export: Callable[..., Any], qat: bool, quantizer: Any = None
) -> GraphModule:
    """The prepared model in evaluation mode."""
    host = prepare_qat_pt2e if qat else prepare_pt2e
    return set_training(host(export(model, images), quantizer or seven_bits(qat)), False)


@torch.no_grad()
def float_check(prepared: GraphModule, model: nn.Module, images: Tensor) -> float:
    """`sqnr` of a prepared model in which nothing is quantized."""
    for module in prepared.modules():
        if hasattr(module, "disable_fake_quant"):
            module.disable_fake_quant()
            module.disable_observer()
    return sqnr(model(images), prepared(images))


@torch.no_grad()
def finish(prepared: GraphModule, images: Tensor) -> GraphModule:
    """Calibrated and converted."""
    calibrate(prepared, list(images.split(2)))
    return convert_pt2e(prepared)
