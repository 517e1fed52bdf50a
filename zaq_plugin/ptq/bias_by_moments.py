"""Bias correction without any image (DFQ, Nagel et al., ICCV 2019, section 4.2)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from zaq_plugin.ptq.bias import take_back, take_out, weight_error
from zaq_plugin.ptq.channel_moments import Moments
from zaq_plugin.ptq.channels import linear_response
from zaq_plugin.ptq.student import (
    float_weight,
    quantized_layers,
    reference_weight,
)


def correct_bias_by_moments(
    student: nn.Module,
    inputs: Mapping[str, Moments | None],
    *,
    reference: nn.Module | None = None,
) -> dict[str, Tensor]:
    """Take ``E[(W^ - W) x] = (W^ - W) E[x]`` out of every bias whose layer's E[x] is known.

    Args:
        student: What `simulate` returned.
        inputs: What `input_moments` returned for the same model.
        reference: As for `zaq_plugin.ptq.correct_bias`.

    Returns:
        For each layer that was corrected what was taken out, ``(output channels,)``.

    Raises:
        ValueError: If the student has no quantized weight.
    """
    layers = dict(quantized_layers(student))
    if not layers:
        raise ValueError(
            f"{type(student).__name__} has no fake-quantized weights; pass what simulate() returned"
        )
    taken: dict[str, Tensor] = {}
    for name, layer in layers.items():
        known = inputs.get(name)
        if known is None:
            continue
        error = weight_error(layer, reference_weight(reference, name, float_weight(layer)))
        take_back(layer)
        shift = linear_response(layer, error, known.mean)
        take_out(name, layer, shift)
        taken[name] = shift
    return taken
