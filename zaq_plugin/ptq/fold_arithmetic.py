"""The arithmetic of BatchNorm folding: which modules it knows, and the folded weight and bias.

In evaluation mode BatchNorm is an affine map per channel, ``y = (x - mean) * g / sqrt(var + eps) +
b``, so that a convolution or linear layer in front of it can take the map into its own weight and
bias. Everything is computed in float64 and cast back to the layer's type once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd

from zaq_plugin.layers import groups_of, wide_dtype


@dataclass(frozen=True)
class NormStatistics:
    """What BatchNorm does in evaluation mode; every tensor has shape ``(channels,)``."""

    mean: Tensor
    var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift of ``y = scale * x + shift``, both float64 of shape ``(channels,)``."""
        wide = wide_dtype(self.mean)
        scale = (self.var.to(wide) + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight.to(wide)
        shift = -self.mean.to(wide) * scale
        if self.bias is not None:
            shift = shift + self.bias.to(wide)
        return scale, shift


def folded_parameters(
    weight: Tensor,
    bias: Tensor | None,
    norm: NormStatistics,
    *,
    transposed: bool = False,
    groups: int = 1,
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the layer that computes layer and BatchNorm in one.

    Args:
        weight: ``(out, in / groups, *kernel)``, or ``(in, out / groups, *kernel)`` when
            ``transposed``.
        bias: ``(out,)``, or None.
        norm: The statistics of the BatchNorm that follows.
        transposed: The weight is a transposed convolution's.
        groups: Groups of the convolution; needed for transposed ones only.

    Returns:
        The new weight and bias, in the weight's type and memory layout.

    Raises:
        ValueError: If the result is not finite.
    """
    with torch.no_grad():
        scale, shift = norm.affine()
        scale, shift = scale.to(weight.device), shift.to(weight.device)
        wide = weight.to(scale.dtype)
        if transposed:
            split = wide.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
            factor = scale.reshape(groups, 1, weight.shape[1], *[1] * (weight.dim() - 2))
            new_weight = (split * factor).reshape(weight.shape)
        else:
            new_weight = wide * scale.reshape(-1, *[1] * (weight.dim() - 1))
        new_bias = shift if bias is None else bias.to(scale.dtype) * scale + shift
        new_weight, new_bias = new_weight.to(weight.dtype), new_bias.to(weight.dtype)
        if not (new_weight.isfinite().all() and new_bias.isfinite().all()):
            raise ValueError(
                "the folded weight or bias holds NaN or infinity: the BatchNorm's statistics or "
                f"the layer's weight are not finite, or too large for {weight.dtype}; mend them, "
                "or fold in float32"
            )
        if weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last):
            return new_weight.contiguous(memory_format=torch.channels_last), new_bias
        return new_weight.contiguous(), new_bias


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm: torch's own, a subclass, or a frozen one."""
    if isinstance(module, _BatchNorm):
        return True
    names = ("running_mean", "running_var", "weight", "bias", "eps")
    return type(module).__name__.startswith("FrozenBatchNorm") and all(
        hasattr(module, name) for name in names
    )


def norm_statistics(norm: nn.Module) -> NormStatistics | str:
    """The statistics of a BatchNorm module, or the reason why it cannot be folded."""
    mean, var = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
    if mean is None or var is None:
        return "it keeps no running statistics (track_running_stats=False)"
    if isinstance(norm, _BatchNorm) and norm.training:
        return "it is in training mode and normalises by batch statistics; call .eval() on it"
    weight, bias, eps = norm.weight, norm.bias, norm.eps
    return NormStatistics(mean, var, weight, bias, float(eps))  # type: ignore[arg-type]


def fold_module(layer: nn.Module, stats: NormStatistics) -> None:
    """Write folded weight and bias into a layer, which gets a bias if it has none."""
    weight, bias = layer.weight, layer.bias
    if not isinstance(weight, Tensor):
        raise TypeError(f"{type(layer).__name__}.weight is {type(weight).__name__}, not a tensor")
    new_weight, new_bias = folded_parameters(
        weight,
        bias if isinstance(bias, Tensor) else None,
        stats,
        transposed=isinstance(layer, _ConvTransposeNd),
        groups=groups_of(layer),
    )
    layer.weight = nn.Parameter(new_weight, requires_grad=weight.requires_grad)
    layer.bias = nn.Parameter(new_bias, requires_grad=weight.requires_grad)


def remainder(norm: nn.Module) -> nn.Module:
    """What is left of a BatchNorm without its affine map: nothing, or its fused activation."""
    parts = [getattr(norm, name, None) for name in ("drop", "act")]
    modules = [p for p in parts if isinstance(p, nn.Module) and not isinstance(p, nn.Identity)]
    if not modules:
        return nn.Identity()
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)
