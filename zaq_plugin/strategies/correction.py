"""Bias correction from activations."""

from __future__ import annotations

from zaq_plugin.ptq import correct_bias
from zaq_plugin.strategies.stage import Stage, Work


class CorrectBias(Stage):
    """The mean output error ``E[(W^ - W) x]`` of each channel leaves the bias (DFQ, section 4.2).

    x comes from the calibration images, through the quantized layers before.
    """

    slot = "after"
    name = "bias-correction"

    def finish(self, work: Work) -> None:
        """Correct layer after layer."""
        work.refuse_after_training(self.name)
        memory = work.request.memory
        correct_bias(work.student, work.batches(), reference=work.teacher, memory=memory)
