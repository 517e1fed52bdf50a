"""Channels of a layer: their ranges, rescaling them, and what they answer to constant inputs.

Axis by axis this is different for plain, grouped, depthwise and transposed layers; nobody else has
to know.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from zaq_plugin.layers import LAYERS, groups_of, wide_dtype
from zaq_plugin.ptq.computed_weights import random_input, without_hooks


def output_ranges(layer: nn.Module) -> Tensor:
    """Largest magnitude of the weights of every output channel, (channels,) float64."""
    weight = wide_weight(layer)
    if isinstance(layer, _ConvTransposeNd):
        groups = layer.groups
        split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        return split.transpose(1, 2).flatten(0, 1).flatten(1).abs().amax(1)
    return weight.flatten(1).abs().amax(1)


def input_ranges(layer: nn.Module) -> Tensor:
    """Largest magnitude of the weights that every input channel meets, (channels,) float64."""
    return _by_input(layer, wide_weight(layer).abs()).amax(1)


def _by_input(layer: nn.Module, weight: Tensor) -> Tensor:
    """A weight as (input channels, everything that they meet)."""
    if isinstance(layer, _ConvTransposeNd):
        return weight.flatten(1)
    groups = groups_of(layer)
    split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    return split.transpose(1, 2).flatten(0, 1).flatten(1)


def scale_outputs(layer: nn.Module, factor: Tensor) -> None:
    """Multiply every output channel of a layer, bias included, by a factor (channels,)."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, nn.Parameter)
    if isinstance(layer, _ConvTransposeNd):
        groups = layer.groups
        shape = (groups, 1, weight.shape[1], *[1] * (weight.dim() - 2))
        split = weight.double().reshape(groups, -1, *weight.shape[1:]) * factor.reshape(shape)
        weight.copy_(split.reshape(weight.shape))
    else:
        weight.copy_(weight.double() * factor.reshape(-1, *[1] * (weight.dim() - 1)))
    if isinstance(bias, nn.Parameter):
        bias.copy_(bias.double() * factor)


def scale_inputs(layer: nn.Module, factor: Tensor) -> None:
    """Multiply the weights that every input channel meets by a factor (channels,)."""
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    if isinstance(layer, _ConvTransposeNd):
        shape: tuple[int, ...] = (-1, *[1] * (weight.dim() - 1))
        weight.copy_(weight.double() * factor.reshape(shape))
        return
    groups = groups_of(layer)
    shape = (groups, 1, weight.shape[1], *[1] * (weight.dim() - 2))
    split = weight.double().reshape(groups, -1, *weight.shape[1:]) * factor.reshape(shape)
    weight.copy_(split.reshape(weight.shape))


def wide_weight(layer: nn.Module) -> Tensor:
    """A layer's weight in float64."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach().to(wide_dtype(weight))


def linear_response(layer: nn.Module, weight: Tensor, mean: Tensor) -> Tensor:
    """``Σ_i mean_i Σ_k w[o, i, k]`` for every output channel o.

    Args:
        layer: Linear or convolution.
        weight: Any weight of the layer's shape.
        mean: (input channels,) or (input features,).
    """
    mean = mean.to(weight)
    if isinstance(layer, _ConvTransposeNd):
        groups = layer.groups
        sums = weight.flatten(2).sum(2) * mean.unsqueeze(1)
        return sums.reshape(groups, -1, weight.shape[1]).sum(1).flatten()
    groups = groups_of(layer)
    sums = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
    split = sums.reshape(groups, -1, sums.shape[1]) * mean.reshape(groups, 1, -1)
    return split.sum(2).flatten()


def add_to_bias(layer: nn.Module, change: Tensor) -> None:
    """Add to a layer's bias, which it gets if it has none; change is (output channels,)."""
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    if not isinstance(layer.bias, nn.Parameter):
        zeros = torch.zeros(len(change), device=weight.device, dtype=weight.dtype)
        layer.bias = nn.Parameter(zeros, requires_grad=weight.requires_grad)
    layer.bias.add_(change.to(layer.bias))


def is_rescalable(layer: nn.Module) -> bool:
    """Whether a layer passes positive factors per channel on, as torch's own layers do.

    A subclass with its own forward (a padding of its own, say) is tried on random inputs.
    """
    kinds = [kind for kind in LAYERS if isinstance(layer, kind)]
    if not kinds or type(layer).forward is kinds[0].forward:
        return bool(kinds)
    generator = torch.Generator().manual_seed(0)
    outputs, inputs = copy.deepcopy(layer), copy.deepcopy(layer)
    x = random_input(layer)
    axis = x.dim() - 1 if isinstance(layer, nn.Linear) else 1
    into = (torch.rand(x.shape[axis], generator=generator) + 0.5).double().to(x.device)
    shape = [-1 if i == axis else 1 for i in range(x.dim())]
    with torch.no_grad():
        try:
            right = without_hooks(layer, x.clone())
            out = (torch.rand(right.shape[axis], generator=generator) + 0.5).double().to(x.device)
            scale_outputs(outputs, out)
            scale_inputs(inputs, into)
            spread = without_hooks(outputs, x.clone())
            same = without_hooks(inputs, x / into.reshape(shape).to(x))
        except Exception:  # an own forward may want anything
            return False
    limit = 1e-4 if x.dtype in (torch.float32, torch.float64) else 3e-2
    largest = max(float(right.abs().max()), 1e-12)
    expected = right * out.reshape(shape).to(x)
    return all(
        float((a - b).abs().max()) <= limit * largest
        for a, b in ((spread, expected), (same, right))
    )


class BoundedReLU(nn.Module):
    """``min(max(x, 0), bound)``, with one bound per channel.

    Args:
        bound: (channels,).
        axis: Of the channels: 1, or -1 for features.
    """

    bound: Tensor

    def __init__(self, bound: Tensor, axis: int = 1) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("bound", bound.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, *positions) or (n, ..., channels), same shape."""
        behind = x.dim() - 1 - self.axis % x.dim()
        bound = self.bound.to(x.dtype).reshape(-1, *[1] * behind)
        return torch.minimum(x.relu(), bound)

    def extra_repr(self) -> str:
        """Channels and the range of the bounds."""
        low, high = float(self.bound.min()), float(self.bound.max())
        return f"channels={len(self.bound)}, bound={low:.4g}..{high:.4g}"
