"""Proof of a conversion: int8 kernels against the prepared model, on the batch at hand."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.ao.nn.quantized as nnq
from torch import Tensor, fx
from torch.nn import functional

from zaq_fx._compat import silence_host
from zaq_plugin.pwlq.overflow import LIMIT, worst_pairs
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

# ---- Do int8 kernels add products exactly on this processor? -------------------------------------

_CHANNELS, _SIDE = 64, 4


@cache
def kernels_saturate() -> bool:
    """Whether the int8 convolution of the engine in use loses what exceeds 16 bits.

    Every activation is 255 and every weight 127: two products are 64,770, more than 16 bits hold.
    On a grid that makes the true sum 255, every output must be 255.

    Raises:
        RuntimeError: this build of torch has no int8 kernels.
    """
    with warnings.catch_warnings():
        silence_host()
        return loses_something()


def loses_something() -> bool:
    """The same, asked anew: another engine may be in use."""
    x = torch.quantize_per_tensor(
        torch.full((1, _CHANNELS, _SIDE, _SIDE), 255.0), 1.0, 0, torch.quint8
    )
    channels = torch.ones(_CHANNELS, dtype=torch.double)
    weight = torch.quantize_per_channel(
        torch.full((_CHANNELS, _CHANNELS, 1, 1), 127.0),
        channels,
        torch.zeros(_CHANNELS, dtype=torch.long),
        0,
        torch.qint8,
    )
    operators = torch.ops.quantized
    packed = operators.conv2d_prepack(weight, None, [1, 1], [0, 0], [1, 1], 1)
    output = operators.conv2d.new(x, packed, 127.0 * _CHANNELS, 0)
    return bool((output.int_repr().int() - 255).abs().max() > 2)


# ---- The proof -----------------------------------------------------------------------------------

SATURATES = (
    "torch's int8 kernel for this layer adds two products in 16 bits on this processor, which "
    "saturates (FBGEMM's depthwise ones always, others without VNNI); 7 bits for activations do not"
)
_FUNCTIONS: dict[type, Callable[..., Tensor]] = {
    nnq.Linear: functional.linear,
    nnq.Conv1d: functional.conv1d,
    nnq.Conv2d: functional.conv2d,
    nnq.Conv3d: functional.conv3d,
    nnq.ConvTranspose1d: functional.conv_transpose1d,
    nnq.ConvTranspose2d: functional.conv_transpose2d,
    nnq.ConvTranspose3d: functional.conv_transpose3d,
}
_TRANSPOSED = (nnq.ConvTranspose1d, nnq.ConvTranspose2d, nnq.ConvTranspose3d)
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
    source = student_side("the prepared model", prepared)
    target = other_side("the converted model", converted, prepared)
    gap = difference(
        source, target, call, KERNELS_DB if kernels else SAME_DB, lambda: noise_of(prepared, call)
    )
    if gap is None:
        return
    name = gap.place.layer
    alike = kernels and gap.place.given_alike
    module = converted.get_submodule(name) if name is not None and alike else None
    if name is not None and _may_saturate(module) and saturates(module):
        _tell(converted, name)
        text = f"layer '{name}': {SATURATES} (outputs: {gap.ratio:.1f} dB)"
        warnings.warn(text, Saturation, stacklevel=3)
        return
    raise refusal(source, target, gap, _ADVICE)


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
    layer: Any = module
    if not isinstance(module, tuple(_FUNCTIONS)):
        return False
    weight: Tensor = layer.weight()
    if not weight.is_quantized:
        return False
    per_tensor = weight.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric)
    axis = None if per_tensor else weight.q_per_channel_axis()
    return bool((worst_pairs(weight.int_repr(), axis) > LIMIT).any())


def saturates(module: Any) -> bool:
    """Whether an int8 layer's kernel saturates on this processor, by an answer that is known.

    A layer of the same shape is given 255 throughout and has weights of 127, so that two products
    exceed 16 bits.

    Args:
        module: A converted convolution or linear layer.
    """
    function = next((f for kind, f in _FUNCTIONS.items() if isinstance(module, kind)), None)
    if function is None:
        return False
    own: Tensor = module.weight()
    weight = torch.quantize_per_tensor(torch.full(own.shape, 127.0), 1.0, 0, torch.qint8)
    size = [1, module.in_features] if isinstance(module, nnq.Linear) else _image(module)
    x = torch.quantize_per_tensor(torch.full(size, 255.0), 1.0, 0, torch.quint8)
    arguments: tuple[Any, ...] = ()
    if not isinstance(module, nnq.Linear):
        arguments = (module.stride, module.padding, module.dilation, module.groups)
        if isinstance(module, _TRANSPOSED):
            arguments = (
                module.stride,
                module.padding,
                module.output_padding,
                module.groups,
                module.dilation,
            )
    right = function(x.dequantize(), weight.dequantize(), None, *arguments)
    probe = copy.copy(module)
    probe.__dict__ = {**module.__dict__, "_packed_params": None}
    if isinstance(module, nnq.Linear):
        probe = nnq.Linear(module.in_features, module.out_features)
    probe.set_weight_bias(weight, None)
    probe.scale, probe.zero_point = float(right.max()) / 255, 0
    output = probe(x).dequantize()
    return bool((output - right).abs().max() > 2 * probe.scale)


def _image(module: Any) -> list[int]:
    """A shape that the kernel of a convolution fits into."""
    reach = zip(module.dilation, module.kernel_size, strict=True)
    return [1, module.in_channels, *(max(4, d * (k - 1) + 1) for d, k in reach)]
