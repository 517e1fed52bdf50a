"""The float model as the oracle of the FX route: how far preparation and conversion are from it."""

from typing import Any

import torch
from torch import Tensor, nn

import zaq_fx
from zaq_plugin import UniformSpec

SEVEN = UniformSpec(7, "symmetric")
"""Seven bits for weights and activations: kernels of processors without VNNI cannot saturate."""


def sqnr(expected: Any, actual: Any) -> float:
    """Signal to noise in dB, the lowest of all outputs; inf if equal."""
    if isinstance(expected, tuple | list):
        return min(sqnr(e, f) for e, f in zip(expected, actual, strict=True))
    noise = (expected - actual).double().square().sum()
    return float(10 * torch.log10(expected.double().square().sum() / noise))


def prepared(model: nn.Module, images: Tensor, **options: Any) -> Any:
    """The model prepared with seven bits throughout."""
    bits = {"input_bits": 7, "other_bits": 7}
    return zaq_fx.prepare(model, (images[:2].clone(),), SEVEN, 7, **bits, **options)


@torch.no_grad()
def float_check(model: nn.Module, images: Tensor, **options: Any) -> float:
    """SQNR in dB of the prepared model, with nothing quantized, against the float model."""
    twin = zaq_fx.twin(prepared(model, images, **options))
    return sqnr(model(images.clone()), twin(images.clone()))


@torch.no_grad()
def converted(model: nn.Module, images: Tensor, **options: Any) -> Any:
    """The model calibrated on two batches and converted to int8 kernels."""
    ready = prepared(model, images, **options)
    zaq_fx.calibrate(ready, [batch.clone() for batch in images.chunk(2)])
    return zaq_fx.convert(ready)


@torch.no_grad()
def assert_right(model: nn.Module, images: Tensor, db: float = 22, **options: Any) -> Any:
    """Both figures are good; returns the converted model."""
    assert float_check(model, images, **options) > 100
    int8_model = converted(model, images, **options)
    assert sqnr(model(images.clone()), int8_model(images.clone())) > db
    return int8_model
