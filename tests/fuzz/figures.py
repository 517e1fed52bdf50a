"""How far outputs are apart, and how far quantization alone may put them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

EQUAL = 999.0


def leaves(value: Any) -> Iterator[Tensor]:
    """Every tensor of nested tuples, lists and mappings, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for v in value.values():
            yield from leaves(v)
    elif isinstance(value, list | tuple):
        for v in value:
            yield from leaves(v)


def sqnr(right: Any, got: Any) -> float:
    """The lowest signal-to-noise ratio over all outputs in dB, 999 where equal, -99 for NaN.

    Raises:
        ValueError: other outputs, or outputs of other shapes.
    """
    expected, found = list(leaves(right)), list(leaves(got))
    if [x.shape for x in expected] != [x.shape for x in found]:
        raise ValueError(
            f"outputs of shapes {[tuple(x.shape) for x in found]}, "
            f"expected {[tuple(x.shape) for x in expected]}"
        )
    worst = EQUAL
    for a, b in zip(expected, found, strict=True):
        a, b = a.detach().double(), b.detach().double()
        error = float((a - b).square().sum())
        if not math.isfinite(error):
            return -99.0
        if error > 0:
            power = float(a.square().sum()) + 1e-12
            worst = min(worst, 10 * math.log10(power / error))
    return round(worst, 1)


WEIGHTED: dict[Callable[..., Any], int] = {
    F.conv1d: 0,
    F.conv2d: 0,
    F.conv3d: 0,
    F.linear: 0,
    F.bilinear: 0,
    F.conv_transpose1d: 1,
    F.conv_transpose2d: 1,
}


def on_grid(x: Tensor, bits: int, axis: int | None = None) -> Tensor:
    """x on a uniform grid between its extremes and zero: of the tensor, or along an axis."""
    if axis is None:
        low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    else:
        dims = [d for d in range(x.dim()) if d != axis]
        high = x.abs().amax(dims, keepdim=True)
        low = -high
    step = ((high - low) / (2**bits - 1)).clamp(min=1e-12)
    return (x / step).round() * step


class _Quantized(TorchFunctionMode):
    """Weights per output channel, inputs of layers and results of all functions on grids."""

    def __init__(self, weight_bits: int, bits: int) -> None:
        super().__init__()
        self.weight_bits, self.bits = weight_bits, bits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The function of quantized tensors, its result quantized."""
        kwargs = kwargs or {}
        if func in WEIGHTED:
            x, weight, *rest = args
            x = on_grid(x, self.bits)
            if func is not F.bilinear:
                weight = on_grid(weight, self.weight_bits, WEIGHTED[func])
            return on_grid(func(x, weight, *rest, **kwargs), self.bits)
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name.startswith("__") and name not in ("__add__", "__radd__", "__mul__", "__sub__"):
            return result
        if isinstance(result, Tensor) and result.is_floating_point() and result.dim() > 1:
            return result if name.endswith("_") else on_grid(result, self.bits)
        return result


@torch.no_grad()
def reference_sqnr(
    model: nn.Module, inputs: tuple[Tensor, ...], weight_bits: int, bits: int
) -> float:
    """SQNR of the network with every weight and every result quantized, by this file alone.

    The least of three inputs, which differ by the step of an 8-bit grid, as do their float
    outputs from each other: it also tells how far a network spreads small differences.
    """
    model = copy.deepcopy(model)
    worst = EQUAL
    generator = torch.Generator().manual_seed(0)
    right = model(*(x.clone() for x in inputs))
    for trial in range(3):
        moved = [
            x + trial * (torch.rand(x.shape, generator=generator) - 0.5) * (x.max() - x.min()) / 255
            for x in inputs
        ]
        with _Quantized(weight_bits, bits):
            got = model(*moved)
        worst = min(worst, sqnr(right, got))
    return worst
