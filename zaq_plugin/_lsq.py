"""Learned step size quantization, as a differentiable function of values and step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class _RoundAndClamp(torch.autograd.Function):
    """``clamp(round(x) + offset)``; the gradient passes where nothing was clamped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, offset: Tensor, low: int, high: int) -> Tensor:
        rounded = x.round() + offset
        ctx.save_for_backward((rounded >= low) & (rounded <= high))
        return rounded.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None, None


class _ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


def lsq(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """Learned step size quantization (Esser et al., ICLR 2020, equations 1 to 3 and section 2.2).

    Rounds exactly as torch's quantize operators do. The step's gradient is multiplied by
    ``1 / sqrt(numel * high)``.
    """
    step = _ScaleGradient.apply(scale, 1 / math.sqrt(x.numel() * max(high, 1)))
    offset = zero_point.to(x.dtype)
    codes: Tensor = _RoundAndClamp.apply(x * (1 / step), offset, low, high)
    return (codes - offset) * step
