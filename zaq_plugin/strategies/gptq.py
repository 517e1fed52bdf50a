"""GPTQ: rounding with error feedback, without training; also on PWLQ levels.

Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers
(ICLR 2023, arXiv 2210.17323). Other than in the paper, grids have the clip of least squared error,
columns go in order of falling diagonal ("act-order"), coordinate descent follows (QuantEase, Behdin
et al., 2023, arXiv 2309.01885), and the bias is corrected from activations.
"""

from __future__ import annotations

from zaq_plugin.ptq.compensate import compensate_rounding
from zaq_plugin.strategies.dfq import CorrectBiasByMoments
from zaq_plugin.strategies.images import Distilled
from zaq_plugin.strategies.parts import ActivationsByWidth, CorrectBias, LeastSquaresWeights
from zaq_plugin.strategies.stage import Stage, Strategy, Work


class FeedbackRounding(Stage):
    """Weights still to be rounded make up for what rounded ones lost; biases for the mean of it.

    Inputs come from the calibration images, through the quantized layers before.
    """

    slot = "after"
    name = "gptq"
    replaces = (CorrectBias.name, CorrectBiasByMoments.name)

    def finish(self, work: Work) -> None:
        """Round layer after layer.

        Raises:
            ValueError: If a stage before has learned roundings or weights, which would be lost.
        """
        work.refuse_after_training(self.name)
        if work.moved:
            raise ValueError(
                f"gptq rounds the float weights anew and would discard what {work.moved!r} has "
                f"learned; name it first: 'gptq+{work.moved}'"
            )
        request = work.request
        results = compensate_rounding(
            work.student, work.batches(), work.teacher, seed=request.seed, memory=request.memory
        )
        work.moved = self.name
        left = {name: result.reason for name, result in results.items() if result.reason}
        work.notes.append(
            f"gptq: error feedback in {len(results) - len(left)} of {len(results)} layers"
        )
        work.notes += [f"gptq left {name} as it was: {reason}" for name, reason in left.items()]


GPTQ = Strategy(
    name="gptq",
    title="rounding with error feedback, bias correction from activations",
    paper="Frantar et al., ICLR 2023",
    data="synthetic",
    trains=False,
    stages=(Distilled(), LeastSquaresWeights(), ActivationsByWidth(), FeedbackRounding()),
    takes_images=True,
)
