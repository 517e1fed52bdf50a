"""Proof of a conversion: int8 kernels against the prepared model, on the batch at hand."""

from __future__ import annotations

import dataclasses
import warnings
from functools import cache
from typing import Any

import torch
import torch.ao.nn.quantized as nnq
from torch import Tensor, fx

from zaq_fx.layers import engine
from zaq_plugin.report import Audit
from zaq_plugin.student.batches import Call
from zaq_plugin.student.hand_over import (
    KERNELS_DB,
    SAME_DB,
    difference,
    noise_of,
    other_side,
    refusal,
    student_side,
)

LARGEST = 2**15 - 1
SATURATES = (
    "this processor's int8 kernels add two products in 16 bits, which saturate (it has no VNNI); "
    "7 bits for weights and activations do not"
)
_ADVICE = (
    "torch.ao converts that part to something else: leave it out by an override (None), or write "
    "it in another way"
)


class Saturation(UserWarning):
    """A layer computes something else on this processor; ignore it by this category."""


def require_conversion(
    prepared: fx.GraphModule, converted: fx.GraphModule, call: Call, *, kernels: bool
) -> None:
    """Compare a converted model with the prepared one.

    Kernels round at other places, so that `KERNELS_DB` are demanded of them, and no more than the
    model's own quantization noise allows. A layer that saturates on this processor is a warning,
    and said in the audit.

    Args:
        prepared: Calibrated.
        converted: With its audit; lines are added to it.
        call: One batch.
        kernels: Whether it computes in int8; a reference model computes in float.

    Raises:
        ValueError: they are too far apart; the text names the first layer that differs.
    """
    given = student_side("the prepared model", prepared)
    made = other_side("the converted model", converted, prepared)
    found = difference(
        given, made, call, KERNELS_DB if kernels else SAME_DB, lambda: noise_of(prepared, call)
    )
    if found is None:
        return
    name = found.place.layer
    alike = kernels and found.place.given_alike
    module = converted.get_submodule(name) if name is not None and alike else None
    if name is not None and _may_saturate(module) and saturates(engine()):
        _tell(converted, name)
        text = f"layer '{name}': {SATURATES} (outputs: {found.ratio:.1f} dB)"
        warnings.warn(text, Saturation, stacklevel=3)
        return
    raise refusal(given, made, found, _ADVICE)


def _tell(converted: fx.GraphModule, name: str) -> None:
    """Say in the audit that a layer saturates."""
    records = [
        dataclasses.replace(
            record, reason="; ".join(text for text in (record.reason, SATURATES) if text)
        )
        if record.name in (name, name.removesuffix(".0"))
        else record
        for record in converted.zaq_audit  # type: ignore[union-attr]
    ]
    object.__setattr__(converted, "zaq_audit", Audit(records))


def _may_saturate(module: Any) -> bool:
    """Whether two products of a layer may exceed 16 bits, with activations up to 255."""
    if not callable(getattr(module, "weight", None)):
        return False
    weight: Tensor = module.weight()
    return bool(weight.is_quantized) and int(weight.int_repr().abs().max()) * 2 * 255 > LARGEST


@cache
def saturates(name: str) -> bool:
    """Whether an engine's int8 convolution saturates on this processor, by a known answer.

    Every activation is 255 and every weight 127, so that two products exceed 16 bits.

    Args:
        name: The engine in use.
    """
    assert name == engine()
    channels = 64
    layer = nnq.Conv2d(channels, channels, 1)
    weight = torch.full((channels, channels, 1, 1), 127.0)
    layer.set_weight_bias(torch.quantize_per_tensor(weight, 1.0, 0, torch.qint8), None)
    layer.scale, layer.zero_point = 127.0 * channels, 0
    x = torch.quantize_per_tensor(torch.full((1, channels, 4, 4), 255.0), 1.0, 0, torch.quint8)
    return bool((layer(x).int_repr() - 255).abs().max() > 2)
