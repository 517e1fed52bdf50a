"""ZAQ: zero-shot adversarial fine-tuning as a hook in any training loop (Liu et al., CVPR 2021).

`ZeroShotLoader` stands in the place of a DataLoader; `zero_shot_finetune` is a whole guarded run.
"""

from zaq_plugin.reconstruction import BlockResult, ReconstructOptions, reconstruct
from zaq_plugin.zero_shot.config import ZeroShotConfig
from zaq_plugin.zero_shot.discrepancy import all_outputs, select
from zaq_plugin.zero_shot.distill import DistillOptions, distill_images
from zaq_plugin.zero_shot.finetune import zero_shot_finetune
from zaq_plugin.zero_shot.generator import Generator
from zaq_plugin.zero_shot.images import ImageFormat, ImageStatistics
from zaq_plugin.zero_shot.loader import ZeroShotLoader
from zaq_plugin.zero_shot.training import FinetuneResult, TrainingDiverged

__all__ = [
    "BlockResult",
    "DistillOptions",
    "FinetuneResult",
    "Generator",
    "ImageFormat",
    "ImageStatistics",
    "ReconstructOptions",
    "TrainingDiverged",
    "ZeroShotConfig",
    "ZeroShotLoader",
    "all_outputs",
    "distill_images",
    "reconstruct",
    "select",
    "zero_shot_finetune",
]
