"""How far a student's outputs are from its teacher's, sample by sample.

Outputs with several channels are classes, or a choice between them at every position: their
distance is the Kullback-Leibler divergence of the softmax. An output with one channel (a
regression, one mask, one score) has no such distribution, a softmax over one number is 1 whatever
the number: its distance is the squared error relative to the teacher's spread, and it agrees where
it lies on the same side.
"""

from __future__ import annotations

import torch
from torch import Tensor


def is_single(output: Tensor) -> bool:
    """Whether an output has one channel: (B,), (B, 1) or (B, 1, ...)."""
    return output.dim() < 2 or output.shape[1] == 1


def spread(teacher: Tensor) -> Tensor:
    """Mean squared deviation of all of a teacher's values from their mean; a scalar.

    Where they do not deviate (one value, or always the same), their mean square. Never zero, and
    without gradient.
    """
    values = teacher.detach().float() if teacher.dtype.itemsize < 4 else teacher.detach()
    square = values.square().mean()
    variance = (values - values.mean()).square().mean()
    floor = torch.finfo(values.dtype).tiny
    return torch.where(variance > 1e-9 * square, variance, square).clamp(min=floor)


def threshold(teacher: Tensor) -> Tensor:
    """What divides a single output's values in two: 0, or their mean if all have one sign."""
    values = teacher.detach()
    mixed = (values > 0).any() & (values < 0).any()
    return torch.where(mixed, torch.zeros_like(values.mean()), values.mean())


def divergences(
    teacher: Tensor,
    student: Tensor,
    *,
    temperature: float = 1.0,
    scale: Tensor | None = None,
) -> Tensor:
    """Distance of each sample, (B,), mean over its positions; never negative, 0 if equal.

    Args:
        teacher: (B,) or (B, K, ...).
        student: Of the same shape.
        temperature: Softens both sides' classes.
        scale: `spread` of more of the teacher's outputs than these, for one channel.
    """
    if is_single(teacher):
        each = (teacher - student).square() / (spread(teacher) if scale is None else scale)
    else:
        log_p = torch.log_softmax(teacher / temperature, dim=1)
        log_q = torch.log_softmax(student / temperature, dim=1)
        p = log_p.exp()  # 0 for classes that are masked out, by minus infinity, say
        each = (p * torch.where(p > 0, log_p - log_q, 0.0)).sum(dim=1)
    return each.reshape(len(each), -1).mean(1) if each.dim() else each.reshape(1)


def agreements(teacher: Tensor, student: Tensor, *, divide: Tensor | None = None) -> Tensor:
    """Share of each sample's positions, (B,), where both choose alike.

    With several channels that is the same top class, with one the same side of `threshold`.

    Args:
        teacher: (B,) or (B, K, ...).
        student: Of the same shape.
        divide: `threshold` of more of the teacher's outputs than these, for one channel.
    """
    if is_single(teacher):
        border = threshold(teacher) if divide is None else divide
        same = (teacher > border) == (student > border)
    else:
        same = teacher.argmax(dim=1) == student.argmax(dim=1)
    return same.float().reshape(len(same), -1).mean(1) if same.dim() else same.float().reshape(1)
