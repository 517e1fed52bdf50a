"""GPTQ: rounding with error feedback, without training; also on PWLQ levels.

Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers
(ICLR 2023, arXiv 2210.17323). ``pwlq+gptq`` is PWLQ with it: it takes seconds, and is what we
recommend wherever weights are narrower than eight bits.
"""

from __future__ import annotations

from zaq_plugin.ptq.compensate import compensate_rounding
from zaq_plugin.strategies.activations import TopKActivations
from zaq_plugin.strategies.images import Distilled
from zaq_plugin.strategies.stage import Stage, Strategy, Work
from zaq_plugin.strategies.weights import LeastSquaresWeights


class FeedbackRounding(Stage):
    """Weights still to be rounded make up for what rounded ones lost; biases for the mean of it.

    x comes from the calibration images, through the quantized layers before.
    """

    slot = "after"
    name = "gptq"

    def finish(self, work: Work) -> None:
        """Round layer after layer."""
        results = compensate_rounding(
            work.student, work.batches(), reference=work.folded, seed=work.request.seed
        )
        kept = {name: result.reason for name, result in results.items() if result.reason}
        work.notes.append(
            f"gptq: error feedback in {len(results) - len(kept)} of {len(results)} layers"
        )
        work.notes += [f"gptq left {name} as it was: {reason}" for name, reason in kept.items()]


GPTQ = Strategy(
    name="gptq",
    title="rounding with error feedback, bias correction from activations",
    paper="Frantar et al., ICLR 2023",
    data="synthetic",
    trains=False,
    stages=(Distilled(), LeastSquaresWeights(), TopKActivations(), FeedbackRounding()),
    takes_images=True,
)
