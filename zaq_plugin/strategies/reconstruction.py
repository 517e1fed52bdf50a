"""AdaRound, BRECQ and QDrop: learned rounding, on synthetic or on real images.

* AdaRound (Nagel et al., ICML 2020, arXiv 2004.10568): layer by layer, roundings alone.
* BRECQ (Li et al., ICLR 2021, arXiv 2102.05426): block by block, roundings and activation steps.
* QDrop (Wei et al., ICLR 2022, arXiv 2203.05740): BRECQ, with activations dropped back to float at
  random while it learns.

All three share `zaq_plugin.zero_shot.reconstruct`, which rounds between neighbouring levels of
whatever grid the weights have.
"""

from __future__ import annotations

from dataclasses import dataclass

from zaq_plugin.ptq.compound import compound_layers
from zaq_plugin.reconstruction import ReconstructOptions, reconstruct
from zaq_plugin.reconstruction.blocks import LARGEST_BLOCK, uncovered_weights
from zaq_plugin.strategies.images import Distilled
from zaq_plugin.strategies.parts import LeastSquaresWeights, TopKActivations
from zaq_plugin.strategies.stage import Stage, Strategy, Work

ITERATIONS = 300


@dataclass(frozen=True)
class Reconstruct(Stage):
    """Reconstruction of blocks or single layers against the float model.

    Attributes:
        name: ``adaround``, ``brecq`` or ``qdrop``.
        options: At full effort.
    """

    slot = "after"

    name: str
    options: ReconstructOptions

    def finish(self, work: Work) -> None:
        """Reconstruct in place.

        Raises:
            ValueError: If a weight cannot be moved.
        """
        refuse_compound(work, self.name)
        request, options = work.request, self.options
        fields = dict(vars(options))
        fields["iterations"] = request.steps(options.iterations)
        fields["batch_size"] = min(options.batch_size, request.batch_size)
        chosen = ReconstructOptions(**fields)
        note_uncovered(work, chosen.largest_block)
        results = reconstruct(
            work.student,
            work.teacher,
            work.images,
            chosen,
            rng=work.rng(2),
        )
        work.moved = self.name
        better = sum(r.after < r.before for r in results)
        work.notes.append(f"{self.name}: {better} of {len(results)} blocks improved")


def note_uncovered(work: Work, largest: int = LARGEST_BLOCK) -> None:
    """Note the weights that lie in no block: reconstruction leaves them at their levels."""
    left = uncovered_weights(work.student, work.teacher, work.request.example_inputs[0], largest)
    if left:
        work.notes.append(f"not reconstructed: {left}")


def refuse_compound(work: Work, what: str) -> None:
    """Refuse weights that are put together from several tensors.

    Raises:
        ValueError: With the way out.
    """
    for name, quantizer in compound_layers(work.student):
        raise ValueError(
            f"{what} cannot move the weight of layer {name!r}, which has {quantizer.remark}; "
            "compose it with a strategy of one grid per channel, such as 'omse' or 'pwlq'"
        )


def _strategy(name: str, title: str, paper: str, options: ReconstructOptions) -> Strategy:
    stages = (Distilled(), LeastSquaresWeights(), TopKActivations(), Reconstruct(name, options))
    return Strategy(name, title, paper, "synthetic", True, stages, takes_images=True)


ADAROUND = _strategy(
    "adaround",
    "learned rounding, layer by layer",
    "Nagel et al., ICML 2020",
    ReconstructOptions(
        ITERATIONS, harden_until=0.0, rounding_lr=6e-2, step_lr=0.0, drop=0.0, largest_block=1
    ),
)
BRECQ = _strategy(
    "brecq",
    "learned rounding and activation steps, block by block",
    "Li et al., ICLR 2021",
    ReconstructOptions(ITERATIONS, harden_until=0.0, rounding_lr=6e-2, drop=0.0),
)
QDROP = _strategy(
    "qdrop",
    "BRECQ with activations dropped back to float at random",
    "Wei et al., ICLR 2022",
    ReconstructOptions(ITERATIONS, harden_until=0.0, rounding_lr=6e-2, drop=0.5),
)
