"""What a simulated student holds: fake-quantized layers, the float weights behind them, codes."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.utils import parametrize

from zaq_plugin.fake_quantize import PWLQPerChannelFakeQuantize
from zaq_plugin.ptq.compound import CompoundFakeQuantize
from zaq_plugin.pwlq import PWLQTensor, quantize

SHIFT = "zaq_bias_shift"
"""Buffer of a layer whose bias was corrected: what was taken out of it."""


def weight_fake_quant(layer: nn.Module) -> PWLQPerChannelFakeQuantize | None:
    """The fake-quantizer on a layer's weight, or None."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    first = layer.parametrizations.weight[0]  # type: ignore[union-attr, index]
    return first if isinstance(first, PWLQPerChannelFakeQuantize) else None


def float_weight(layer: nn.Module) -> Tensor:
    """The float weight behind a layer's fake-quantizer."""
    original: Tensor = layer.parametrizations.weight.original  # type: ignore[union-attr, assignment]
    return original


def reference_weight(reference: nn.Module | None, name: str, own: Tensor) -> Tensor:
    """The weight of a layer in the float model.

    Args:
        reference: The float model that `simulate` got; without one it is the student's own.
        name: Of the layer, the same in both.
        own: The student's float weight.

    Raises:
        ValueError: If the float model has no such layer, or its weight has another shape.
    """
    if reference is None:
        return own.detach()
    way_out = "pass the model that simulate() got, with its BatchNorms folded"
    try:
        weight = reference.get_submodule(name).weight
    except AttributeError as error:
        raise ValueError(f"the float model has no layer {name!r}; {way_out}") from error
    assert isinstance(weight, Tensor)
    if weight.shape != own.shape:
        raise ValueError(
            f"the float model's weight of layer {name!r} is {tuple(weight.shape)}, the student's "
            f"{tuple(own.shape)}; {way_out}"
        )
    return weight.detach().to(own.device)


def quantized_layers(student: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every layer whose weight is fake-quantized by a parametrization, with its name."""
    for name, module in student.named_modules():
        if weight_fake_quant(module) is not None:
            yield name, module


def quantized_tensors(student: nn.Module) -> dict[str, PWLQTensor]:
    """Codes and levels of every quantized weight by layer name.

    ``dequantize()`` of each equals the layer's fake-quantized weight bit for bit.

    Raises:
        ValueError: If the model has no fake-quantized weights, or one that is several tensors.
    """
    tensors = {}
    for name, layer in quantized_layers(student):
        fake_quant = weight_fake_quant(layer)
        assert fake_quant is not None
        if isinstance(fake_quant, CompoundFakeQuantize):
            raise ValueError(
                f"the weight of layer {name!r} is put together from {len(fake_quant.tensors)} "
                f"quantized tensors ({fake_quant.remark}); read them from its fake-quantizer"
            )
        tensors[name] = tensor_of(layer, fake_quant)
    if not tensors:
        raise ValueError(
            f"{type(student).__name__} has no fake-quantized weights; pass what simulate() returned"
        )
    return tensors


def tensor_of(layer: nn.Module, fake_quant: PWLQPerChannelFakeQuantize) -> PWLQTensor:
    """Codes and levels of one layer's weight."""
    edges = fake_quant.edges.detach()
    weight = float_weight(layer).detach()
    return quantize(weight, fake_quant.spec, fake_quant.ch_axis, edges=edges)
