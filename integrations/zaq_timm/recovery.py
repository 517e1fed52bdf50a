"""The demo's second half: what data-free calibration breaks, zero-shot fine-tuning mends.

No image of the data set is used: calibration, reconstruction and training run on images that are
distilled from the float network's BatchNorm statistics and on those of a generator.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zaq_plugin.ptq import audit, correct_bias, quantized_tensors, simulate
from zaq_plugin.pwlq import UniformSpec
from zaq_plugin.report import Figure, image_grid, training_figures
from zaq_plugin.zero_shot import FinetuneResult, ZeroShotConfig, zero_shot_finetune
from zaq_timm.digits import IMAGE_SHAPE, separable_model
from zaq_timm.hosts import Quantized

WEIGHTS, ACTIVATIONS = 4, 4
SPEC = UniformSpec(WEIGHTS, "asymmetric", "mse")
CONFIG = ZeroShotConfig.preset(
    "fast", steps=60, validate_every=20, distilled_images=128, reconstruct_iterations=240
)
DATA_FREE = "none: images distilled from the network's BatchNorm statistics"
SHOWN_IMAGES = 32


@dataclass(frozen=True)
class Recovery:
    """A student before and after zero-shot fine-tuning.

    Attributes:
        before: calibrated on synthetic images, not trained.
        after: the state that fine-tuning handed back.
        result: how it went.
    """

    before: Quantized
    after: Quantized
    result: FinetuneResult


def recover(model: nn.Module, seed: int) -> Recovery:
    """Quantizes the folded network to W4A4, one grid a tensor, and fine-tunes it without data.

    Args:
        model: float, in evaluation mode, BatchNorm folded; it is not touched.
        seed: of all noise.
    """
    untrained = _student(model)
    calibrated = CONFIG.with_changes(seed=seed, steps=0, reconstruct=False)
    _finetune(untrained, calibrated)
    student = _student(model)
    result = _finetune(student, CONFIG.with_changes(seed=seed))
    return Recovery(_quantized(untrained), _quantized(student), result)


def _student(model: nn.Module) -> nn.Module:
    return simulate(model, SPEC, ACTIVATIONS, depthwise="as-told", per_tensor=True)


def _finetune(student: nn.Module, config: ZeroShotConfig) -> FinetuneResult:
    return zero_shot_finetune(
        student,
        config,
        image_shape=IMAGE_SHAPE,
        float_model=separable_model(),
        correct=correct_bias,
        progress=False,
    )


def _quantized(student: nn.Module) -> Quantized:
    return Quantized(student, quantized_tensors(student), audit(student), {})


def _pixels(images: Tensor) -> Tensor:
    """uint8 pixels, each image from its darkest to its brightest value."""
    low = images.amin((1, 2, 3), keepdim=True)
    high = images.amax((1, 2, 3), keepdim=True)
    return ((images - low) / (high - low).clamp(min=1e-6) * 255).round().to(torch.uint8)


def recovery_figures(result: FinetuneResult) -> list[Figure]:
    """The synthetic images, and the loss's terms and the judge's view over the steps."""
    figures = []
    if result.examples is not None:
        figures.append(
            Figure(
                "Images nobody took",
                image_grid(_pixels(result.examples[:SHOWN_IMAGES])),
                "Synthetic images, distilled from the float network's BatchNorm statistics: all "
                "that zero-shot fine-tuning saw.",
            )
        )
    return figures + training_figures(result.curve)
