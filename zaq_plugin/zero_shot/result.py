"""What a run of `zero_shot_finetune` gives back."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from zaq_plugin.zero_shot.judge import Verdict
from zaq_plugin.zero_shot.reconstruct_options import BlockResult


class TrainingDiverged(RuntimeError):
    """The loss became NaN or infinite; the student holds the best state seen before."""


@dataclass
class FinetuneResult:
    """What happened.

    Attributes:
        verdicts: The judge's history; the first is the calibrated, untrained state.
        best: The state that the student holds now.
        blocks: What reconstruction did, block by block.
        curve: Terms of the loss at every judged step, with ``step``, the judge's divergence and
            agreement, D_f on its images, and ``λ NAME`` for every tap.
        layer_weights: λ by tap at the end: the more, the further student and teacher differ there.
        restarts: Steps at which the generator was restarted.
        seconds: Wall time by stage.
        examples: Some of the synthetic images, (n, C, H, W).
    """

    verdicts: list[Verdict] = field(default_factory=list)
    best: Verdict | None = None
    blocks: list[BlockResult] = field(default_factory=list)
    curve: list[dict[str, float]] = field(default_factory=list)
    layer_weights: dict[str, float] = field(default_factory=dict)
    restarts: list[int] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    examples: Tensor | None = None

    @property
    def start(self) -> Verdict:
        """The untrained state."""
        return self.verdicts[0]

    @property
    def improved(self) -> bool:
        """Whether anything better than the untrained state was found."""
        return self.best is not None and self.best.label != self.start.label
