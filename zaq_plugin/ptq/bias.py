"""Bias correction from activations: the mean error of each output channel, taken out of the bias.

A quantized layer computes ``W^ x`` where the float one computes ``W x``; the mean of the
difference, ``E[(W^ - W) x]`` per output channel, is a constant that the bias can absorb (Nagel et
al., ICCV 2019, section 4.2). x is what the quantized model itself feeds the layer, with all layers
before it already corrected.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin.layers import wide_dtype
from zaq_plugin.ptq.channel_moments import Moments
from zaq_plugin.ptq.channels import linear_response
from zaq_plugin.student import FloatWeights, QuantLayer, student_of
from zaq_plugin.student.walk import MEMORY, walk_layers


class MeanInput:
    """Mean input of a layer by shape of one sample, which is all that its mean error needs."""

    def __init__(self, layer: QuantLayer) -> None:
        self.layer = layer
        self._sums: dict[torch.Size, tuple[Tensor, int]] = {}

    def add(self, x: Tensor) -> None:
        """Take a batch of inputs into account; every sample counts the same."""
        linear = isinstance(self.layer.plain, nn.Linear)
        if not linear and x.dim() == self.layer.weight.dim() - 1:
            x = x.unsqueeze(0)  # a convolution's single sample without its batch axis
        samples = x.shape[0] if x.dim() > 1 else 1
        axes = tuple(range(x.dim() - 1)) if linear else (0,)
        rows = x.flatten(0, len(axes) - 1) if axes else x.unsqueeze(0)
        batch_sum = (_wide_sum(rows) * (samples / max(1, len(rows)))).unsqueeze(0)
        total, count = self._sums.get(batch_sum.shape, (torch.zeros_like(batch_sum), 0))
        self._sums[batch_sum.shape] = total + batch_sum, count + samples

    def mean_output(self, weight: Tensor) -> Tensor:
        """The layer's mean output for another weight and no bias, ``(output channels,)``."""
        samples = sum(count for _, count in self._sums.values())
        outputs = [_mean_output(self.layer, total, weight) for total, _ in self._sums.values()]
        return torch.stack(outputs).sum(0) / max(samples, 1)


def _wide_sum(rows: Tensor) -> Tensor:
    """The sum over the first axis in float64, which takes less than half as long as its mean."""
    return rows.to(wide_dtype(rows)).sum(0)


def _mean_output(layer: QuantLayer, x: Tensor, weight: Tensor) -> Tensor:
    """Output channels' means over samples and positions, with another weight and no bias."""
    output = layer.affine(x, weight)
    if isinstance(layer.plain, nn.Linear):
        return output.reshape(-1, output.shape[-1]).mean(0)
    return output.flatten(2).mean((0, 2)) if output.dim() > 2 else output.mean(0)


def mean_output_error(
    layer: QuantLayer, x: Tensor | MeanInput, reference: Tensor | None = None
) -> Tensor:
    """``E[(W^ - W) x]`` per output channel, over samples and positions, in float64.

    The layer is linear in x, so that only the mean of x goes through it.

    Args:
        layer: A layer of a student.
        x: A batch of the layer's inputs, ``(n, channels, *size)``, or ``(*, features)`` for a
            linear layer; or the mean of several.
        reference: W, where the layer's own float weight has been moved.

    Returns:
        ``(output channels,)``.
    """
    if isinstance(x, Tensor):
        batch, x = x, MeanInput(layer)
        x.add(batch)
    return x.mean_output(weight_error(layer, reference))


@torch.no_grad()
def weight_error(layer: QuantLayer, reference: Tensor | None = None) -> Tensor:
    """``W^ - W`` in float64; W is the layer's own float weight, or the one given."""
    wide = wide_dtype(layer.weight)
    return layer.quantized().to(wide) - (layer.weight if reference is None else reference).to(wide)


class _Correction:
    """Takes the mean error out of one layer's bias."""

    def __init__(self, layer: QuantLayer, reference: Tensor) -> None:
        self.layer, self.reference = layer, reference
        self.inputs = MeanInput(layer)
        self.add = self.inputs.add

    def finish(self) -> None:
        if self.layer.bias is not None:
            self.layer.add_to_bias(-mean_output_error(self.layer, self.inputs, self.reference))


def correct_bias(
    student: nn.Module,
    batches: Iterable[Any],
    *,
    reference: nn.Module | None = None,
    memory: int = MEMORY,
) -> dict[str, Tensor]:
    """Take the mean output error ``E[(W^ - W) x]`` out of every quantized layer's bias, in place.

    Layer after layer in order of execution, on the student's own stream: inputs quantized, layers
    before already corrected. Earlier corrections are taken back first, so that a second call with
    the same batches changes nothing. A layer to which its host can give no bias stays as it is. The
    result does not depend on labels; a few hundred images, real or generated, are plenty.

    Args:
        student: Prepared in any host, calibrated if its activations are quantized.
        batches: See `zaq_plugin.student.batches.as_call`; all are kept in memory.
        reference: The float model that was prepared, if the student's float weights have been moved
            since (by `compensate_rounding`, or by training).
        memory: Bytes that the activations of batches may take which wait in front of a layer until
            all have come there. What of them does not fit is run anew for each layer, up to it.

    Returns:
        For each corrected layer, in order of execution, what was taken out of its bias,
        ``(output channels,)``.

    Raises:
        ValueError: If there are no batches, no quantized layer, an activation is not finite, or
            ``reference`` is another model.
        TypeError: If a batch is of an unknown kind.
    """
    view, weights = student_of(student), FloatWeights(reference)
    view.restore_biases()

    def begin(layer: QuantLayer, samples: int) -> _Correction:
        return _Correction(layer, weights.of(layer))

    order = walk_layers(view, batches, begin, what="correct_bias", memory=memory)
    layers = view.layers()
    return {n: layers[n].memory.bias_shift.clone() for n in order if layers[n].bias is not None}


def correct_bias_by_moments(
    student: nn.Module,
    inputs: Mapping[str, Moments | None],
    *,
    reference: nn.Module | None = None,
) -> dict[str, Tensor]:
    """Take ``E[(W^ - W) x] = (W^ - W) E[x]`` out of every bias whose layer's E[x] is known.

    Without any image (DFQ, Nagel et al., ICCV 2019, section 4.2).

    Args:
        student: What `simulate` returned.
        inputs: What `input_moments` returned for the same model.
        reference: As for `zaq_plugin.ptq.correct_bias`.

    Returns:
        For each layer that was corrected what was taken out, ``(output channels,)``.

    Raises:
        ValueError: If the student has no quantized weight.
    """
    layers, weights = student_of(student).layers(), FloatWeights(reference)
    taken: dict[str, Tensor] = {}
    for name, layer in layers.items():
        moments = inputs.get(name)
        if moments is None or layer.plain is None:
            continue
        shift = linear_response(layer.plain, weight_error(layer, weights.of(layer)), moments.mean)
        layer.restore_bias()
        layer.add_to_bias(-shift)
        taken[name] = shift
    return taken
