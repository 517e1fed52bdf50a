"""Small runs of zero-shot fine-tuning: settings, and what tests do with them."""

from __future__ import annotations

from torch import Tensor, nn

from zaq_plugin.zero_shot import ZeroShotConfig, zero_shot_finetune

SHAPE = (3, 8, 8)
QUICK = ZeroShotConfig(
    steps=12,
    batch_size=8,
    distilled_images=48,
    validation_images=32,
    distill_steps=10,
    calibration_images=32,
    reconstruct_iterations=20,
    reconstruct_batch_size=8,
    validate_every=4,
    latent_dim=8,
    generator_width=4,
    warmup_steps=3,
    patience=0,
)
MIXED = QUICK.with_changes(images="mixed", alpha=0.2, ema_decay=0.9, replay_share=0.3)


class Killed(BaseException):
    """Stands for a kill signal."""


def finetune(
    student: nn.Module, config: ZeroShotConfig, model: nn.Module, **kwargs: object
) -> object:
    return zero_shot_finetune(
        student, config, image_shape=SHAPE, float_model=model, progress=False, **kwargs
    )  # type: ignore[arg-type]


def weights(student: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in student.state_dict().items()}
