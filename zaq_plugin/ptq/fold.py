"""BatchNorm folding for any model: what was folded and what not, and what BatchNorms remembered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from zaq_plugin.layers import wide_dtype
from zaq_plugin.ptq.bake import bake_parametrizations, copied
from zaq_plugin.ptq.fold_graph import fold_graph
from zaq_plugin.ptq.fold_modules import find_pairs, fold_pairs
from zaq_plugin.ptq.wrappers import part_of, unwrap_parts, unwrapped

ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True)
class Folding:
    """What folding did.

    Attributes:
        folded: ``(layer, norm)`` pairs.
        kept: For each BatchNorm that stayed the reason.
        baked: Layers whose weight was computed anew at every call (weight_norm, pruning, weight
            standardisation), and is a plain parameter now.
    """

    folded: tuple[tuple[str, str], ...] = ()
    kept: dict[str, str] = field(default_factory=dict)
    baked: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"folded {len(self.folded)} BatchNorm, kept {len(self.kept)}"]
        lines += [f"  kept {name}: {reason}" for name, reason in self.kept.items()]
        if self.baked:
            lines.append(f"  computed weights made plain: {', '.join(self.baked)}")
        return "\n".join(lines)


def fold_batch_norm(
    model: ModelT, example_inputs: Sequence[Any] | None = None, *, inplace: bool = False
) -> ModelT:
    """Fold every BatchNorm that directly follows a convolution or linear layer into that layer.

    In a model of modules the BatchNorm becomes ``nn.Identity``, or what is left of it where it is
    fused with an activation (timm's ``BatchNormAct2d``). In an ``fx.GraphModule``, traced or from
    ``ExportedProgram.module()``, its node goes. A BatchNorm stays, with its reason, where folding
    would change what the model computes: a layer called twice, a shared weight, an output used
    elsewhere, batch statistics, a layer whose own forward is not a plain convolution.

    A weight that is computed at every call and constant in evaluation mode (weight_norm,
    spectral_norm, pruning and other parametrizations) becomes a plain parameter.

    Args:
        model: A model in evaluation mode; its function is what is preserved. Half precision stays
            so (the arithmetic is float64). A compiled or parallel one is unwrapped,
            and so are its parts.
        example_inputs: The tensors that the model is called with. Needed where torch.fx cannot
            trace the model (``torch.export`` follows it then), and for a linear layer before a
            BatchNorm, whose output's rank decides what its channels are.
        inplace: Change ``model`` itself instead of a deep copy.

    Returns:
        The folded model; its attribute ``zaq_folding`` is a ``Folding`` that says what was done.

    Raises:
        TypeError: If ``model`` is no module, for instance an ``ExportedProgram``.
        ValueError: If the model is in training mode, cannot be traced, or folding gives NaN or
            infinity.
    """
    source: object = model
    if not isinstance(source, nn.Module):
        way_out = "; pass program.module()" if isinstance(source, ExportedProgram) else ""
        raise TypeError(
            f"fold_batch_norm expects an nn.Module, got {type(source).__name__}{way_out}"
        )
    model = unwrapped(model)  # type: ignore[assignment]
    if model.training and not isinstance(model, fx.GraphModule):  # a graph says it node by node
        raise ValueError(
            f"{type(model).__name__} is in training mode{_meaning(model)}; call .eval() before it "
            "is folded and quantized"
        )
    if not inplace:
        model = copied(model)
    unwrap_parts(model)
    baked = bake_parametrizations(model)
    if isinstance(model, fx.GraphModule):
        folded, reasons = fold_graph(model)
    else:
        folded, reasons = fold_pairs(model, find_pairs(model, example_inputs))
    model.zaq_folding = Folding(tuple(folded), reasons, tuple(baked))  # type: ignore[assignment]
    return model


def _meaning(model: nn.Module) -> str:
    """What training mode changes in a model."""
    modules = list(model.modules())
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in modules):
        return ", where BatchNorm uses batch statistics"
    if any(isinstance(m, nn.modules.dropout._DropoutNd) for m in modules):
        return ", where dropout is random"
    return ""


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
    folding = folding_of(folded)
    pairs = () if folding is None else folding.folded
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


def folding_of(model: nn.Module) -> Folding | None:
    """What `fold_batch_norm` has left on the model that it made."""
    return getattr(model, "zaq_folding", None)


def rescaled(remembered: Mapping[str, Normal], factors: Mapping[str, Tensor]) -> Remembered:
    """The statistics of a model whose layers' outputs were divided by factors."""
    return {
        name: normal.divided(factors[name]) if name in factors else normal
        for name, normal in remembered.items()
    }
