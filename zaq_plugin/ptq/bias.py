"""Bias correction from activations: the mean error of each output channel, taken out of the bias.

A quantized layer computes ``W^ x`` where the float one computes ``W x``; the mean of the
difference, ``E[(W^ - W) x]`` per output channel, is a constant that the bias can absorb (Nagel et
al., ICCV 2019, section 4.2). x is what the quantized model itself feeds the layer, with all layers
before it already corrected.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin.ptq.fold_arithmetic import out_features, wide_dtype
from zaq_plugin.ptq.layer_walk import MEMORY, walk_layers
from zaq_plugin.ptq.student import (
    SHIFT,
    float_weight,
    quantized_layers,
    reference_weight,
    weight_fake_quant,
)


class MeanInput:
    """Mean input of a layer by shape of one sample, which is all that its mean error needs."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self._sums: dict[torch.Size, tuple[Tensor, int]] = {}

    def add(self, x: Tensor) -> None:
        """Take a batch of inputs into account; every sample counts the same."""
        linear = isinstance(self.layer, nn.Linear)
        if not linear and x.dim() == float_weight(self.layer).dim() - 1:
            x = x.unsqueeze(0)  # a convolution's single sample without its batch axis
        samples = x.shape[0]
        axes = tuple(range(x.dim() - 1)) if linear else (0,)
        mean = x.mean(axes, dtype=wide_dtype(x)).unsqueeze(0)
        total, count = self._sums.get(mean.shape, (torch.zeros_like(mean), 0))
        self._sums[mean.shape] = total + mean * samples, count + samples

    def mean_output(self, weight: Tensor) -> Tensor:
        """The layer's mean output for another weight and no bias, ``(output channels,)``."""
        samples = sum(count for _, count in self._sums.values())
        outputs = [_mean_output(self.layer, total, weight) for total, _ in self._sums.values()]
        return torch.stack(outputs).sum(0) / max(samples, 1)


def _mean_output(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """Output channels' means over samples and positions, with another weight and no bias."""
    quantizer, original = weight_fake_quant(layer), float_weight(layer)
    assert quantizer is not None
    kept, bias = original.data, layer._parameters.get("bias")
    enabled = bool(quantizer.fake_quant_enabled[0])
    try:
        quantizer.disable_fake_quant()
        original.data = weight
        layer._parameters["bias"] = None
        with torch.no_grad():
            output: Tensor = layer.forward(x)
    finally:
        original.data = kept
        layer._parameters["bias"] = bias
        quantizer.enable_fake_quant(enabled)
    if isinstance(layer, nn.Linear):
        return output.reshape(-1, output.shape[-1]).mean(0)
    return output.flatten(2).mean((0, 2)) if output.dim() > 2 else output.mean(0)


def mean_output_error(
    layer: nn.Module, x: Tensor | MeanInput, reference: Tensor | None = None
) -> Tensor:
    """``E[(W^ - W) x]`` per output channel, over samples and positions, in float64.

    The layer is linear in x, so that only the mean of x goes through it.

    Args:
        layer: A convolution or linear layer with a fake-quantized weight.
        x: A batch of the layer's inputs, ``(n, channels, *size)``, or ``(*, features)`` for a
            linear layer; or the mean of several.
        reference: W, where the layer's own float weight has been moved.

    Returns:
        ``(output channels,)``.
    """
    if isinstance(x, Tensor):
        given, x = x, MeanInput(layer)
        x.add(given)
    return x.mean_output(weight_error(layer, reference))


@torch.no_grad()
def weight_error(layer: nn.Module, reference: Tensor | None = None) -> Tensor:
    """``W^ - W`` in float64; W is the layer's own float weight, or the one given."""
    quantizer, original = weight_fake_quant(layer), float_weight(layer)
    assert quantizer is not None
    wide = wide_dtype(original)
    return quantizer(original).to(wide) - (original if reference is None else reference).to(wide)


class _Correction:
    """Takes the mean error out of one layer's bias."""

    def __init__(self, name: str, layer: nn.Module, reference: Tensor) -> None:
        self.name, self.layer, self.reference = name, layer, reference
        self.inputs = MeanInput(layer)
        self.add = self.inputs.add

    def finish(self) -> None:
        error = mean_output_error(self.layer, self.inputs, self.reference)
        take_out(self.name, self.layer, error)


def correct_bias(
    student: nn.Module,
    batches: Iterable[Any],
    *,
    reference: nn.Module | None = None,
    memory: int = MEMORY,
) -> dict[str, Tensor]:
    """Take the mean output error ``E[(W^ - W) x]`` out of every quantized layer's bias, in place.

    Layer after layer in order of execution, on the student's own stream: inputs quantized, layers
    before already corrected. A layer without a bias gets one. Earlier corrections are taken back
    first, so that a second call with the same batches changes nothing. The result does not depend
    on labels; a few hundred images, real or generated, are plenty.

    Args:
        student: What `simulate` returned, calibrated if its activations are quantized.
        batches: As for `calibrate`; all are kept in memory.
        reference: The float model that `simulate` got, if the student's float weights have been
            moved since (by `compensate_rounding`, or by training).
        memory: Bytes that activations may take. If all batches fit, one forward pass does all
            layers; otherwise each layer takes a pass of its own, batch by batch, up to that layer.

    Returns:
        For each layer what was taken out of its bias, ``(output channels,)``.

    Raises:
        ValueError: If there are no batches, no quantized layer, or an activation is not finite.
    """

    def begin(name: str, layer: nn.Module, samples: int) -> _Correction:
        return _Correction(name, layer, reference_weight(reference, name, float_weight(layer)))

    order = walk_layers(
        student, batches, begin, what="correct_bias", prepare=take_back, memory=memory
    )
    layers = dict(quantized_layers(student))
    return {name: getattr(layers[name], SHIFT).clone() for name in order}


def take_back(layer: nn.Module) -> None:
    """Undo an earlier correction, and make sure that there is a bias of the layer's own."""
    weight, bias = float_weight(layer), layer.bias
    if not isinstance(bias, nn.Parameter):
        zeros = torch.zeros(out_features(layer), dtype=weight.dtype, device=weight.device)
        layer.bias = bias = nn.Parameter(zeros, requires_grad=weight.requires_grad)
    shift = getattr(layer, SHIFT, None)
    if not isinstance(shift, Tensor):
        layer.register_buffer(SHIFT, torch.zeros_like(bias, dtype=torch.float32))
        return
    with torch.no_grad():
        bias.add_(shift.to(bias.dtype))
        shift.zero_()


def take_out(name: str, layer: nn.Module, error: Tensor) -> None:
    """Take a mean error (channels,) out of a layer's bias, and remember it on the layer.

    Raises:
        ValueError: If the error is not finite.
    """
    if not bool(error.isfinite().all()):
        raise ValueError(
            f"layer {name!r}: the mean output error is not finite; check the batches for NaN or "
            "infinity"
        )
    bias = layer.bias
    assert isinstance(bias, nn.Parameter)  # take_back has seen to it
    with torch.no_grad():
        getattr(layer, SHIFT).copy_(error)
        bias.sub_(error.to(bias.dtype))
