"""What folded BatchNorms remembered: mean and deviation of every layer's output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin.layers import wide_dtype
from zaq_plugin.ptq.fold import Folding
from zaq_plugin.ptq.wrappers import part_of


@dataclass(frozen=True)
class Normal:
    """Mean and standard deviation per channel, (channels,) float64."""

    mean: Tensor
    deviation: Tensor

    def divided(self, factor: Tensor) -> Normal:
        """Of the channels divided by a positive factor."""
        return Normal(self.mean / factor, self.deviation / factor)

    def shifted(self, by: Tensor) -> Normal:
        """Of the channels moved."""
        return replace(self, mean=self.mean + by)


Remembered = dict[str, Normal]


def remembered_statistics(model: nn.Module, folded: nn.Module) -> Remembered:
    """Mean β and deviation γ of each folded layer's output, before its activation.

    The deviation is ``|γ| sqrt(var / (var + eps))``: what a BatchNorm gives out on the data that
    it was trained on. The papers leave eps away, which is wrong for channels that are almost dead.

    Args:
        model: The model with its BatchNorms.
        folded: What `fold_batch_norm` made of it.

    Raises:
        ValueError: If no BatchNorm was folded.
    """
    folding = getattr(folded, "zaq_folding", None)
    pairs = folding.folded if isinstance(folding, Folding) else ()
    statistics: Remembered = {}
    for layer, norm in pairs:
        place: Any = part_of(model, norm)
        mean, var = place.running_mean, place.running_var
        wide = wide_dtype(mean)
        eps = float(getattr(place, "eps", 1e-5))
        var = var.detach().to(wide).clamp(min=0)
        gamma, beta = getattr(place, "weight", None), getattr(place, "bias", None)
        size = torch.ones_like(var) if gamma is None else gamma.detach().to(wide).abs()
        center = torch.zeros_like(var) if beta is None else beta.detach().to(wide)
        statistics[layer] = Normal(center, size * (var / (var + eps)).sqrt())
    if not statistics:
        raise ValueError(
            f"{type(model).__name__} has no BatchNorm behind a convolution or linear layer, so "
            "there are no statistics to work with; use a strategy that works from images, such as "
            "'pwlq'"
        )
    return statistics


def rescaled(remembered: Mapping[str, Normal], factors: Mapping[str, Tensor]) -> Remembered:
    """The statistics of a model whose layers' outputs were divided by factors."""
    return {
        name: normal.divided(factors[name]) if name in factors else normal
        for name, normal in remembered.items()
    }
