"""ACIQ: analytic clips, bits by channel, bias correction by moments.

Banner et al., Post Training 4-bit Quantization of Convolutional Networks for Rapid-Deployment
(NeurIPS 2019, arXiv 1810.05723). Uniform weights have the whole range of each channel, as there;
PWLQ weights have the closed-form breakpoint of a Laplace density.
"""

from __future__ import annotations

from zaq_plugin.ptq.analytic import AnalyticObserver, allocate_bits
from zaq_plugin.ptq.compound import AllocatedFakeQuantize, install
from zaq_plugin.pwlq.kernels import to_rows
from zaq_plugin.strategies.images import Distilled
from zaq_plugin.strategies.parts import ObservedActivations, per_channel_only, spec_for
from zaq_plugin.strategies.stage import Stage, Strategy, Work
from zaq_plugin.student import student_of


class AllocatedWeights(Stage):
    """Per-channel bit allocation (equation 11) and moment matching (section 4)."""

    slot = "weights"
    name = "bit-allocation"
    several_tensors = True

    def prepare(self, work: Work) -> None:
        """Choose the grid at the mean width."""
        per_channel_only(work, self.name)
        work.spec = spec_for(work, clip="minmax", policy="laplacian")

    def finish(self, work: Work) -> None:
        """Give every channel its width."""
        for layer in student_of(work.student).layers().values():
            quantizer, weight = layer.quantizer, layer.weight
            if quantizer.ch_axis is None or quantizer.spec != work.spec:
                continue  # a layer with a grid of its own, such as the first or the last
            rows = to_rows(weight, quantizer.ch_axis)
            low, high = work.spec.stored_range
            widths = allocate_bits(
                rows.amax(1).clamp(min=0) - rows.amin(1).clamp(max=0),
                work.request.weight_bits,
                low,
                high,
            )
            replacement = AllocatedFakeQuantize(
                work.spec, quantizer.ch_axis, weight, widths, match=True
            )
            install(layer, replacement)


class AnalyticActivations(ObservedActivations):
    """The analytic clip of a Gaussian or Laplace density, whichever fits (section 3)."""

    name = "analytic-clip"
    observer = AnalyticObserver


ACIQ = Strategy(
    name="aciq",
    title="analytic clip, bits by channel, per-channel bias correction",
    paper="Banner et al., NeurIPS 2019",
    data="synthetic",
    trains=False,
    stages=(Distilled(), AllocatedWeights(), AnalyticActivations()),
    takes_images=True,
)
