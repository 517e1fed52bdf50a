"""Bias correction without any image (DFQ, Nagel et al., ICCV 2019, section 4.2)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from zaq_plugin.ptq.bias import weight_error
from zaq_plugin.ptq.channel_moments import Moments
from zaq_plugin.ptq.channels import linear_response
from zaq_plugin.student import FloatWeights, student_of


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
