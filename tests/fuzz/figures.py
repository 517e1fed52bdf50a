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
    expected, actual = list(leaves(right)), list(leaves(got))
    if [x.shape for x in expected] != [x.shape for x in actual]:
        raise ValueError(
            f"outputs of shapes {[tuple(x.shape) for x in actual]}, "
            f"expected {[tuple(x.shape) for x in expected]}"
        )
    worst = EQUAL
    for a, b in zip(expected, actual, strict=True):
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


def on_grid(x: Tensor, bits: int, axis: int | None = None, clip: bool = False) -> Tensor:
    """x on a uniform grid between its extremes and zero: of the tensor, or along an axis.

    With ``clip`` between the means, over three parts of the batch, of what all but half a percent
    of the values keep to: range observers leave the rarest values out, and know only their batch.
    """
    if axis is None and clip and x.numel() > 3:
        parts = [part.flatten() for part in x.chunk(3)]
        low = torch.stack([torch.quantile(p, 0.005, interpolation="lower") for p in parts])
        high = torch.stack([torch.quantile(p, 0.995, interpolation="higher") for p in parts])
        low, high = low.mean().clamp(max=0), high.mean().clamp(min=0)
        x = x.clamp(low, high)
    elif axis is None:
        low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    else:
        dims = [d for d in range(x.dim()) if d != axis]
        high = x.abs().amax(dims, keepdim=True)
        low = -high
    step = ((high - low) / (2**bits - 1)).clamp(min=1e-12)
    return (x / step).round() * step


class _Quantized(TorchFunctionMode):
    """Weights per output channel, inputs of layers and results of all functions on grids."""

    def __init__(self, weight_bits: int, bits: int, clip: bool) -> None:
        super().__init__()
        self.weight_bits, self.bits, self.clip = weight_bits, bits, clip

    def _grid(self, x: Tensor) -> Tensor:
        return on_grid(x, self.bits, clip=self.clip)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The function of quantized tensors, its result quantized."""
        kwargs = kwargs or {}
        if func in WEIGHTED:
            x, weight, *rest = args
            x = self._grid(x)
            if func is not F.bilinear:
                weight = on_grid(weight, self.weight_bits, WEIGHTED[func])
            return self._grid(func(x, weight, *rest, **kwargs))
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name.startswith("__") and name not in ("__add__", "__radd__", "__mul__", "__sub__"):
            return result
        if isinstance(result, Tensor) and result.is_floating_point() and result.dim() > 1:
            return result if name.endswith("_") else self._grid(result)
        return result


@torch.no_grad()
def reference_sqnr(
    model: nn.Module, inputs: tuple[Tensor, ...], weight_bits: int, bits: int, trials: int = 3
) -> float:
    """SQNR of the network with every weight and every result quantized, by this file alone.

    The least of the trials: as it is; with inputs moved by the step of an 8-bit grid, which
    tells how far a network spreads small differences; with ranges that clip, see `on_grid`.
    """
    model = copy.deepcopy(model)
    worst = EQUAL
    generator = torch.Generator().manual_seed(0)
    right = model(*(x.clone() for x in inputs))
    for trial in range(trials):
        moved = [
            x
            + (trial == 1)
            * (torch.rand(x.shape, generator=generator) - 0.5)
            * (x.max() - x.min())
            / 255
            for x in inputs
        ]
        with _Quantized(weight_bits, bits, clip=trial == 2):
            got = model(*moved)
        worst = min(worst, sqnr(right, got))
    return worst
