"""The pictures on the demo's page."""

from collections.abc import Mapping, Sequence
from typing import cast

from torch import nn

from zaq_plugin.pwlq import PWLQSpec, PWLQTensor
from zaq_plugin.report import Figure, ResultRow
from zaq_timm.formats import FORMATS, PER_TENSOR

CHARTED = 8
"""Activation width that the first chart shows."""
SHOWN_LAYER = "blocks.9.3"
"""Whose weights are drawn: a pointwise convolution near the end."""


def demo_figures(
    model: nn.Module, tensors: Mapping[str, PWLQTensor], rows: Sequence[ResultRow]
) -> list[Figure]:
    """Accuracy over bits, one layer's weights and their error over the breakpoint, and the theory.

    Args:
        model: the float model, BatchNorm folded.
        tensors: its weights in the format of the checkpoint, one breakpoint.
        rows: the results.

    Raises:
        ImportError: matplotlib is missing; the text says how to install it.
    """
    from zaq_plugin.report import plots

    weight = model.get_submodule(SHOWN_LAYER).weight.detach()  # type: ignore[operator]
    tensor = tensors[SHOWN_LAYER]
    spec = tensor.spec
    if not spec.has_tail:  # PWLQ alone has one
        raise TypeError(f"the figures show a PWLQ weight, got {spec.label}")
    return [
        Figure(
            "Accuracy over stored bits",
            plots.accuracy_over_bits(charted(rows)),
            "Top-1 on the held-out digits over the bits that a weight takes on disk, with one grid "
            "a tensor and activations of 8 bits. A PWLQ weight is stored in "
            "one bit more than it multiplies with, so it stands one bit further right than the "
            "uniform grid with the same multiplier.",
        ),
        Figure(
            f"Weights of {SHOWN_LAYER}",
            plots.weight_histogram(weight, tensor, name=SHOWN_LAYER),
            "One channel's weights, and below them the levels they are stored as: close together "
            "between the breakpoints, further apart in the tails.",
        ),
        Figure(
            "Error over the breakpoint",
            plots.error_over_breakpoint(weight, cast(PWLQSpec, spec), name=SHOWN_LAYER),
            "Squared error of the layer's weights as the breakpoint p moves between zero and the "
            "clip m, against uniform grids.",
        ),
        Figure(
            "Where the breakpoint belongs",
            plots.optimal_breakpoint_figure(),
            "The best p/m for Gaussian and Laplacian weights, exact and by the paper's closed "
            "forms, over the clip m in standard deviations.",
        ),
    ]


def charted(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """The float network, and the simulated formats with one grid a tensor: three lines."""
    names = {form.name + PER_TENSOR for form in FORMATS}
    return [
        row
        for row in rows
        if row.is_float or (row.method in names and row.activation_mac_bits == CHARTED)
    ]
