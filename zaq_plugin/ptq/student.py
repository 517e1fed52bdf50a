"""Codes and levels of a simulated student."""

from __future__ import annotations

from torch import nn

from zaq_plugin.ptq.compound import CompoundFakeQuantize
from zaq_plugin.pwlq import PWLQTensor
from zaq_plugin.student import student_of


def quantized_tensors(student: nn.Module) -> dict[str, PWLQTensor]:
    """Codes and levels of every quantized weight by layer name.

    ``dequantize()`` of each equals the layer's fake-quantized weight bit for bit.

    Raises:
        ValueError: If the model has no fake-quantized weights, or one that is several tensors.
    """
    tensors = {}
    for name, layer in student_of(student).layers().items():
        if isinstance(layer.quantizer, CompoundFakeQuantize):
            raise ValueError(
                f"the weight of layer {name!r} is put together from "
                f"{len(layer.quantizer.tensors)} quantized tensors ({layer.quantizer.remark}); "
                "read them from its fake-quantizer"
            )
        tensors[name] = layer.tensor()
    return tensors
