"""Layers whose own forward computes the weight that multiplies, as weight standardisation does.

Such a layer keeps one tensor in ``.weight`` and hands another one to the convolution. What it hands
over is found by watching one call; where it is a constant, the layer becomes a plain one that holds
it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zaq_plugin.layers import CONVOLUTIONS, LAYERS, TRANSPOSED
from zaq_plugin.ptq.input_moments import WatchProducts
from zaq_plugin.student.fake_quantizers import is_fake_quantizer


def bake_layer(layer: nn.Module) -> bool:
    """Make a layer that computes its weight a plain one of its kind, in place.

    The layer must be in evaluation mode. Its class becomes torch's own (or, for padding that
    depends on the input's size, `SamePadded1d` and its like); parameters that only served to
    compute the weight go.

    Returns:
        Whether it was baked; False if it multiplies by ``.weight`` as it stands, or if no plain
        layer computes what it computes (see `why_not_plain`).
    """
    parts = _computed(layer)
    if parts is None:
        return False
    kind = _base(layer)
    for new_class in (kind, _SAME.get(kind)):
        if new_class is None:
            continue
        trial = copy.deepcopy(layer)
        _become(trial, new_class, *parts)
        if _same_function(layer, trial):
            _become(layer, new_class, *parts)
            return True
    return False


def why_not_plain(layer: nn.Module) -> str | None:
    """Why a grid on ``.weight`` is none on what the layer multiplies by; None if it is one."""
    if _computed(layer) is None:
        return None
    kind = type(layer).__name__
    return (
        f"the forward of {kind} computes the weight that it multiplies by from .weight, so that "
        "levels of .weight would reach no product"
    )


def random_input(layer: nn.Module, seed: int = 0, extra: int = 5) -> Tensor:
    """Two random samples (four for a linear layer) that a layer can be called with.

    Args:
        layer: Linear or convolution.
        seed: Of the values.
        extra: Positions beyond the kernel's reach.
    """
    weight = layer.weight
    assert isinstance(weight, Tensor)
    generator = torch.Generator().manual_seed(seed)
    if isinstance(layer, nn.Linear):
        shape: tuple[int, ...] = (4, layer.in_features)
    else:
        assert isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED))
        size = [d * (k - 1) + extra for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        shape = (2, layer.in_channels, *size)
    return torch.randn(shape, generator=generator).to(weight.device, weight.dtype)


def without_hooks(layer: nn.Module, x: Tensor) -> Any:
    """A layer's own answer: hooks on it are not run."""
    forward: Any = type(layer).forward
    return forward(layer, x)


def _base(layer: nn.Module) -> type[nn.Module]:
    return next(kind for kind in LAYERS if isinstance(layer, kind))


def _computed(layer: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """The constant weight and bias that a layer multiplies by, if they are not its own."""
    if not isinstance(layer, LAYERS) or type(layer).forward is _base(layer).forward:
        return None
    if any(is_fake_quantizer(part) for part in layer.modules()):
        return None
    seen = []
    with torch.no_grad():
        for seed in (0, 1):
            with WatchProducts() as watch:
                try:
                    without_hooks(layer, random_input(layer, seed))
                except Exception:  # an own forward may want anything; then it stays as it is
                    return None
            if len(watch.products) != 1:
                return None
            seen.append(watch.products[0])
    (weight, bias), (again, bias_again) = ((product.weight, product.bias) for product in seen)
    own = layer.weight
    assert isinstance(own, Tensor)
    if weight.shape != own.shape or not torch.equal(weight, again) or not _equal(bias, bias_again):
        return None
    own_bias = layer.bias if isinstance(layer.bias, Tensor) else None
    if torch.equal(weight, own) and _equal(bias, own_bias):
        return None
    return weight.detach().clone(), None if bias is None else bias.detach().clone()


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return torch.equal(a, b)


def _become(layer: nn.Module, kind: type[nn.Module], weight: Tensor, bias: Tensor | None) -> None:
    """Give a layer another class, this weight and bias, and nothing else."""
    wants_grad = any(p.requires_grad for p in layer.parameters())
    layer.__class__ = kind
    for name in [*layer._parameters, *layer._buffers, *layer._modules]:
        delattr(layer, name)
    layer.register_parameter("weight", nn.Parameter(weight, requires_grad=wants_grad))
    own = None if bias is None else nn.Parameter(bias, requires_grad=wants_grad)
    layer.register_parameter("bias", own)
    if kind in _SAME.values():
        rank = weight.dim() - 2
        layer.padding = (0,) * rank  # type: ignore[assignment]


def _same_function(layer: nn.Module, trial: nn.Module) -> bool:
    """Whether two layers agree on random inputs of several sizes."""
    tolerance = 1e-4 if layer.weight.dtype in (torch.float32, torch.float64) else 3e-2
    with torch.no_grad():
        for extra in (5, 6, 8):
            x = random_input(layer, extra, extra)
            try:
                right = without_hooks(layer, x.clone())
                got = without_hooks(trial, x)
            except Exception:  # whatever an own forward wants, it is not a plain layer's input
                return False
            if not isinstance(right, Tensor) or right.shape != got.shape:
                return False
            limit = tolerance * max(float(right.abs().max()), 1e-12)
            if not float((right - got).abs().max()) <= limit:
                return False
    return True


def _padded(layer: Any, x: Tensor) -> Tensor:
    """Zeros around x, so that a strided convolution gives ``ceil(size / stride)`` positions."""
    widths: list[int] = []
    rank = len(layer.kernel_size)
    for i in reversed(range(rank)):
        size, stride = x.shape[x.dim() - rank + i], layer.stride[i]
        reach = layer.dilation[i] * (layer.kernel_size[i] - 1) + 1
        lacking = max((-(-size // stride) - 1) * stride + reach - size, 0)
        widths += [lacking // 2, lacking - lacking // 2]
    return F.pad(x, widths)


class SamePadded1d(nn.Conv1d):
    """A convolution padded by its input's size, as TensorFlow's padding SAME."""

    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Conv1d`` with zeros around the input."""
        return super().forward(_padded(self, input))


class SamePadded2d(nn.Conv2d):
    """A convolution padded by its input's size, as TensorFlow's padding SAME."""

    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Conv2d`` with zeros around the input."""
        return super().forward(_padded(self, input))


class SamePadded3d(nn.Conv3d):
    """A convolution padded by its input's size, as TensorFlow's padding SAME."""

    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Conv3d`` with zeros around the input."""
        return super().forward(_padded(self, input))


_SAME: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: SamePadded1d,
    nn.Conv2d: SamePadded2d,
    nn.Conv3d: SamePadded3d,
}
