"""Where teacher and student differ, layer by layer, on images that nothing trains on."""

from __future__ import annotations

import torch
from torch import Tensor

from zaq_plugin.ptq.wrappers import unwrapped
from zaq_plugin.zero_shot.discrepancy import feature_discrepancy
from zaq_plugin.zero_shot.loader import ZeroShotLoader


@torch.no_grad()
def watch_layers(loader: ZeroShotLoader, images: Tensor) -> dict[str, float]:
    """D_f on ``images`` and the weight λ of every tap (ZAQ, section 3.2).

    Where D_f is part of the loss, λ is the loss's own. Elsewhere nothing else renews it, so this
    call counts as one of its epochs.

    Args:
        loader: Prepared; its models are run as they stand.
        images: (N, C, H, W).

    Returns:
        ``D_f``, and ``λ NAME`` by tap; empty if nothing is tapped.
    """
    if loader._taps is None or loader.layer_weights is None:
        return {}
    teacher_taps, student_taps = loader._taps
    for taps in (teacher_taps, student_taps):
        taps.clear()
    loader.teacher(images.clone())
    unwrapped(loader.student)(images.clone())
    weights = loader.layer_weights
    total, distances = feature_discrepancy(
        teacher_taps.take(), student_taps.take(), weights, loader.config.losses.relation_norm
    )
    if loader.config.losses.alpha <= 0:
        weights.observe(distances)
        weights.end_epoch()
    values = zip(teacher_taps.names, weights.values.tolist(), strict=True)
    return {"D_f": float(total), **{f"λ {name}": value for name, value in values}}
