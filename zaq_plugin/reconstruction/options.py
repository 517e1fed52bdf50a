"""What block-by-block reconstruction is told, and what it says of each block."""

from __future__ import annotations

from dataclasses import dataclass

from zaq_plugin.reconstruction.blocks import LARGEST_BLOCK


@dataclass(frozen=True)
class ReconstructOptions:
    """How blocks are reconstructed.

    Attributes:
        iterations: Adam steps per block.
        batch_size: Images per step.
        rounding_lr: Learning rate of the roundings.
        step_lr: Learning rate of the activations' steps, relative to the step itself.
        scale_lr: Learning rate of the weights' levels, see `LearnedLevels`; 0 keeps them.
        regulariser: Weight of AdaRound's regulariser, whose exponent falls from 20 to 2.
        warmup: Share of the iterations without the regulariser.
        drop: QDrop's probability, for activations inside the block and for its input.
        harden_until: Share of the iterations by which all roundings are decided for good, the
            surest first, so that scales, steps and the roundings still open make up for each
            decision; 0 leaves all decisions to the end, as AdaRound does.
        exact: Write the levels themselves into the weights; else the nearest value that the
            fake-quantizer rounds to the learned level, which leaves more for training to work on.
        largest_block: Weights in a block at most; 1 reconstructs layer by layer (AdaRound).
    """

    iterations: int = 400
    batch_size: int = 32
    rounding_lr: float = 6e-2
    step_lr: float = 1e-2
    scale_lr: float = 0.0
    regulariser: float = 1e-3
    warmup: float = 0.2
    drop: float = 0.5
    exact: bool = False
    harden_until: float = 0.9
    largest_block: int = LARGEST_BLOCK

    def __post_init__(self) -> None:
        if min(self.iterations, self.batch_size, self.largest_block) < 1:
            raise ValueError(
                "ReconstructOptions: iterations, batch_size and largest_block must be at least 1; "
                f"got {self.iterations}, {self.batch_size} and {self.largest_block}."
            )
        if not 0 <= self.drop < 1 or not 0 <= self.warmup < 1:
            raise ValueError(
                f"ReconstructOptions: drop and warmup must be in [0, 1); got {self.drop} and "
                f"{self.warmup}."
            )
        if not 0 <= self.harden_until <= 1:
            raise ValueError(
                f"ReconstructOptions: harden_until must be in [0, 1]; got {self.harden_until}."
            )


@dataclass(frozen=True)
class BlockResult:
    """What reconstruction did to one block.

    Attributes:
        name: The block.
        before: Mean squared error of its output against the teacher's, at its student input.
        after: The same afterwards; a block that got worse keeps its first state.
        rerounded: Share of its weights that no longer have their nearest level.
    """

    name: str
    before: float
    after: float
    rerounded: float
