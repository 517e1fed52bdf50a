"""Weight-only bias correction: match mean and spread of every channel.

ACIQ (Banner et al., 2019), as PWLQ section 4 uses it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from zaq_plugin.pwlq.layout import to_rows
from zaq_plugin.pwlq.statistics import sqnr_db
from zaq_plugin.pwlq.tensor import PWLQTensor


def correct_spread(q: PWLQTensor, w: Tensor) -> tuple[PWLQTensor, Tensor]:
    """Match the standard deviation on the grid, and say what is left of the mean.

    The spread goes into the scale, ``scale * std(W) / std(Q)``, which stays on the int8 grid. The
    mean shift cannot: it is returned so that it can be folded into a bias, ``b += shift * E[sum of
    the inputs]``.

    Args:
        q: the quantized tensor.
        w: the original values, q's shape.

    Returns:
        The rescaled tensor, and the shift (channels,) with ``mean(W) = mean(corrected) + shift``.
    """
    original = to_rows(w.detach().double(), q.axis)
    quantized = to_rows(q.dequantize(torch.float32).double(), q.axis)
    spread, was = original.std(1, correction=0), quantized.std(1, correction=0)
    usable = (was > 0) & (spread > 0)
    factor = torch.where(usable, spread / was, torch.ones_like(was)).float()
    floating = q.codebook.is_floating_point()
    codebook = q.codebook * factor.unsqueeze(1) if floating else q.codebook
    scale = q.scale if floating else q.scale * factor
    corrected = replace(q, codebook=codebook, scale=scale, edges=None)
    values = corrected.dequantize(torch.float32)
    shift = original.mean(1) - to_rows(values.double(), q.axis).mean(1)
    return replace(corrected, sqnr_db=sqnr_db(w, values)), shift.float()


def correct_mean_std(q: PWLQTensor, w: Tensor) -> PWLQTensor:
    """Match mean and standard deviation of every channel exactly, as in the paper's experiments.

    On the int8 grid the levels leave the grid by the mean shift, so the result is on the float grid
    (float32 codebook, scale 1); use `correct_spread` to stay on it.

    Args:
        q: the quantized tensor.
        w: the original values, q's shape.
    """
    corrected, shift = correct_spread(q, w)
    levels = corrected.codebook.float() * corrected.scale.unsqueeze(1) + shift.unsqueeze(1)
    moved = replace(corrected, codebook=levels, scale=torch.ones_like(corrected.scale))
    return replace(moved, sqnr_db=sqnr_db(w, moved.dequantize(torch.float32)))
