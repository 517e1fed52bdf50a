"""ZeroQ: ranges from distilled images, and mixed precision by sensitivity.

Cai et al., ZeroQ: A Novel Zero Shot Quantization Framework (CVPR 2020, arXiv 2001.00281): Gaussian
noise is moved until the BatchNorms see the statistics that they remember (section 3.1); a layer's
sensitivity at a width is the divergence of the model with that layer alone quantized, and widths
are chosen on the Pareto frontier of their sums (section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from zaq_plugin.ptq.mixed_precision import allocate_widths, kl_sensitivities
from zaq_plugin.strategies.images import Distilled, batch_of
from zaq_plugin.strategies.parts import MinMaxActivations, MinMaxWeights
from zaq_plugin.strategies.stage import Strategy, Work
from zaq_plugin.zero_shot import DistillOptions
from zaq_plugin.zero_shot.statistics import batch_norms

IMAGES = 32
"""So many images measure sensitivities."""


class DistilledFromNoise(Distilled):
    """Images distilled from Gaussian noise, without priors (section 3.1, equation 3).

    Raises:
        ValueError: If the model has no BatchNorm.
    """

    name = "zeroq-images"
    recipe = "noise-distilled"

    def make(self, work: Work) -> Tensor:
        """(n, C, H, W), between black and white."""
        if not batch_norms(work.model):
            raise ValueError(
                f"{type(work.model).__name__} has no BatchNorm, and {self.name} are distilled from "
                "its statistics; use 'pwlq' or 'zaq', which do with dead leaves, or real images"
            )
        return super().make(work)

    def options(self, work: Work) -> DistillOptions:
        """Adam at 0.1 on the pixels."""
        steps = work.request.steps(80)
        return DistillOptions(steps=steps, start="noise", batch_size=batch_of(work))


@dataclass(frozen=True)
class ParetoWeights(MinMaxWeights):
    """A width for each layer, by KL sensitivity, at the mean of the stored bits asked for.

    Attributes:
        reach: Widths from so many bits below to so many above are tried.
    """

    name = "mixed-precision"

    reach: int = 2

    def prepare(self, work: Work) -> None:
        """Measure every layer at every width and choose."""
        super().prepare(work)
        bits = work.request.weight_bits
        low, high = work.spec.stored_range
        widths = [b for b in range(bits - self.reach, bits + self.reach + 1) if low <= b <= high]
        sensitivities, inputs = kl_sensitivities(
            work.folded,
            [work.spec.with_stored_bits(b) for b in widths],
            work.images[:IMAGES],
            adapter=work.request.adapter,
        )
        chosen = allocate_widths(sensitivities, bits)
        request, names = work.request, list(chosen)
        for name, spec in chosen.items():
            if request.first_last is not None and name in (names[0], names[-1]):
                continue
            own = request.activation_bits
            if name in inputs and own is not None and request.input_bits is not None:
                own = request.input_bits
            work.overrides[name] = (spec, own)
        counts = {b: sum(s.stored_bits == b for s in chosen.values()) for b in widths}
        text = ", ".join(f"{n} at {b}" for b, n in counts.items() if n)
        work.notes.append(f"stored bits by sensitivity: layers {text}")


ZEROQ = Strategy(
    name="zeroq",
    title="ranges from images distilled from BatchNorm statistics",
    paper="Cai et al., CVPR 2020",
    data="synthetic",
    trains=False,
    stages=(DistilledFromNoise(), MinMaxWeights(), MinMaxActivations()),
)

ZEROQ_MIXED = replace(
    ZEROQ,
    name="zeroq-mp",
    title="ZeroQ with mixed precision by KL sensitivity",
    stages=(DistilledFromNoise(), ParetoWeights(), MinMaxActivations()),
)
