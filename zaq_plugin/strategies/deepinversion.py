"""DeepInversion: images with priors that the teacher is sure of, for ranges and for fine-tuning.

Yin et al., Dreaming to Distill: Data-Free Knowledge Transfer via DeepInversion (CVPR 2020, arXiv
1912.08795): BatchNorm statistics (equation 4), total variation and L2 priors (equation 3), and the
teacher's cross-entropy towards a class drawn for each image (equation 2). The student then learns
from the teacher on these images. A detector or a segmenter has no class for a whole image: its
images are made by the other terms, and a note says so.
"""

from __future__ import annotations

from zaq_plugin.strategies.images import batch_of, classes_of
from zaq_plugin.strategies.parts import LeastSquaresWeights, MinMaxActivations
from zaq_plugin.strategies.stage import Strategy, Work
from zaq_plugin.strategies.zaq import ZeroShot
from zaq_plugin.strategies.zeroq import DistilledFromNoise
from zaq_plugin.zero_shot import DistillOptions


class DeepInverted(DistilledFromNoise):
    """Images from noise by BatchNorm statistics, priors and the teacher's own classes."""

    name = "deepinversion-images"
    recipe = "deepinversion"

    def options(self, work: Work) -> DistillOptions:
        """All terms of equations 2 to 4, per pixel and per channel instead of summed.

        Without logits (n, classes) there is no term for classes, and the work gets a note.
        """
        classifies = classes_of(work) is not None
        if not classifies:
            work.notes.append(
                f"images without a term for classes (equation 2): {type(work.model).__name__} does "
                "not answer with logits (n, classes)"
            )
        return DistillOptions(
            steps=work.request.steps(80),
            start="noise",
            batch_size=batch_of(work),
            total_variation=0.02,
            l2=1e-3,
            class_weight=0.1 if classifies else 0.0,
            flip=True,
        )


DEEPINVERSION = Strategy(
    name="deepinversion",
    title="fine-tuning on images inverted with priors and classes",
    paper="Yin et al., CVPR 2020",
    data="synthetic",
    trains=True,
    stages=(
        DeepInverted(),
        LeastSquaresWeights(),
        MinMaxActivations(),
        ZeroShot("default", changes=(("reconstruct", False),)),
    ),
)
