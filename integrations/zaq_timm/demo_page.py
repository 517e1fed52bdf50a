"""What the demo's table and page say beside the numbers, and the page's pictures."""

from collections.abc import Mapping, Sequence
from typing import cast

from torch import nn

from zaq_plugin.pwlq import PWLQSpec, PWLQTensor
from zaq_plugin.report import Figure, ResultRow
from zaq_timm.formats import FORMATS, PER_TENSOR

CALIBRATION_IMAGES = 512
CHANNELS = "weights per output channel, activations per tensor"
TENSORS = "weights and activations per tensor"
EVALUATION = "599 held-out images, a third of scikit-learn's handwritten digits"
LEAD = (
    "A small depthwise separable network on handwritten digits, {images} of them never seen in "
    "training. With one grid an output channel, 4-bit weights keep most of its accuracy; with one "
    "grid a tensor, PWLQ's keep more of it than uniform ones of the same multiplier width, most at "
    "3 bits; at equal stored bits uniform ones are as good here. "
    "The checkpoint in this folder is {method} with {weights}-bit multiplications, {stored} bits "
    "stored a weight, and {activations}-bit activations."
)
PROTOCOL = {
    "first_last": "like all other layers; the network's own input at 8 bits",
    "residual_adds": "there are none",
    "symmetry": "weights and activations asymmetric",
    "granularity": CHANNELS,
    "calibration": f"{CALIBRATION_IMAGES} training images, drawn by the seed, for activation "
    "ranges (top-10 median) and bias correction",
    "quantized model": "simulated in float",
}

FLOAT_LEVELS = "float, since int8 cannot tell them apart: PWLQ is meant for 6 bits and fewer"


HOST_NAMES = {
    "fx": "converted by torch.ao FX, run on its int8 kernels",
    "pt2e": "converted by torchao PT2E, its integer graph run operator by operator",
}
SAFE = (
    "add two products in 16 bits on this processor, which saturates; no pair of these levels does "
    "(overflow='pairs', the default)"
)
UNSAFE = "chosen without regard to it (overflow='allowed'), and these saturate here"


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
