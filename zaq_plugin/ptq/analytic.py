"""ACIQ's arithmetic: clips and bit widths from a density alone (Banner et al., NeurIPS 2019).

Clipping at alpha costs what is cut off, and a uniform grid of 2^M cells costs a twelfth of its step
squared:

    Laplace(0, b):  2 b^2 exp(-alpha / b) + alpha^2 / (3 * 4^M)                      (equation 7)
    N(0, sigma^2):  (alpha^2 + sigma^2) erfc(alpha / (sqrt(2) sigma))
                    - sqrt(2 / pi) alpha sigma exp(-alpha^2 / (2 sigma^2)) + alpha^2 / (3 * 4^M)

Behind a ReLU the grid covers half the range, which is one more bit.

Observers that choose activations' ranges so, or by squared error, are here, too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from zaq_plugin._range_observer import RangeObserver
from zaq_plugin.pwlq import minmax_range, uniform_qparams
from zaq_plugin.pwlq.ranges import spread_sample

Density = Literal["gaussian", "laplace"]

GAUSSIAN_RATIO, LAPLACE_RATIO = math.sqrt(2 / math.pi), math.sqrt(0.5)
"""``E|x| / sqrt(E x^2)`` of the two densities: what tells them apart."""


def clipping_error(alpha: float, bits: int, density: Density, one_sided: bool = False) -> float:
    """Expected squared error at unit scale (b or sigma = 1), per value that is not zeroed by ReLU.

    Args:
        alpha: The clip in units of the scale, positive.
        bits: M.
        density: Before the ReLU.
        one_sided: Behind a ReLU: the grid covers [0, alpha].
    """
    step = alpha**2 / (3 * 4.0 ** (bits + one_sided))
    if density == "laplace":
        return 2 * math.exp(-alpha) + step
    cut = (alpha**2 + 1) * math.erfc(alpha / math.sqrt(2))
    return cut - math.sqrt(2 / math.pi) * alpha * math.exp(-(alpha**2) / 2) + step


@functools.lru_cache(maxsize=256)
def optimal_clip(bits: int, density: Density, one_sided: bool = False) -> float:
    """The clip of least `clipping_error`, in units of b or sigma.

    The derivative rises through one zero; it is bisected.
    """
    cells = 3 * 4.0 ** (bits + one_sided)

    def slope(alpha: float) -> float:
        if density == "laplace":
            return -2 * math.exp(-alpha) + 2 * alpha / cells
        tail = 2 * alpha * math.erfc(alpha / math.sqrt(2))
        return tail - 2 * math.sqrt(2 / math.pi) * math.exp(-(alpha**2) / 2) + 2 * alpha / cells

    return _root(slope, 1e-6, 60.0)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    for _ in range(200):
        middle = (low + high) / 2
        if function(middle) < 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def fitted(x: Tensor, one_sided: bool) -> tuple[Density, float]:
    """Which density a sample looks like, and its scale (sigma or b).

    Args:
        x: Any shape; centered, unless one-sided.
        one_sided: Values behind a ReLU: zeros are left out.
    """
    values = x.double()
    if one_sided:
        values = values[values > 0]
    if values.numel() == 0:
        return "laplace", 0.0
    first, second = float(values.abs().mean()), math.sqrt(float(values.square().mean()))
    if second == 0:
        return "laplace", 0.0
    middle = (GAUSSIAN_RATIO + LAPLACE_RATIO) / 2
    if first / second > middle:
        return "gaussian", second
    return "laplace", first


def analytic_range(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(low, high) of a batch by its fitted density, never beyond what was seen; float32 scalars.

    Args:
        x: Activations; without negative values they are taken to come from a ReLU.
        bits: Of the grid.
    """
    low, high = torch.aminmax(x.float())
    one_sided = bool(low >= 0)
    center = 0.0 if one_sided else float(x.double().mean())
    density, scale = fitted(x - center, one_sided)
    alpha = optimal_clip(bits, density, one_sided) * scale
    if alpha == 0:
        return low, high
    if one_sided:
        return torch.zeros_like(low), high.clamp(max=alpha)
    return low.clamp(min=center - alpha), high.clamp(max=center + alpha)


def allocate_bits(ranges: Tensor, bits: int, lowest: int = 2, highest: int = 8) -> Tensor:
    """Bits of every channel by its range (equation 11): ``M_i = log2(B a_i^(2/3) / Σ a_j^(2/3))``.

    B, the number of levels of all channels together, is ``n 2^bits``. Widths are rounded; where
    rounding gives more than ``bits`` on average, those that were rounded up most lose a bit.

    Args:
        ranges: (channels,) a_i, how wide each channel is.
        bits: M, the mean that is not passed.
        lowest, highest: Limits of a channel's width.

    Returns:
        (channels,) int64.
    """
    power = ranges.double().clamp(min=0).pow(2 / 3)
    total = power.sum()
    if float(total) == 0:
        return torch.full(ranges.shape, bits, dtype=torch.int64)
    ideal = (power / total * len(ranges) * 2.0**bits).clamp(min=1e-9).log2()
    widths = ideal.round().clamp(lowest, highest)
    while float(widths.mean()) > bits:
        surplus = torch.where(widths > lowest, widths - ideal, -math.inf)
        widths[int(surplus.argmax())] -= 1
    return widths.long()


SAMPLE = 1 << 15
"""Values of a batch that are looked at."""


class AnalyticObserver(RangeObserver):
    """ACIQ's analytic clip for Gaussian or Laplace activations, averaged over batches."""

    def batch_range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `analytic_range`."""
        return analytic_range(x, self.bits)


class LeastSquaresObserver(RangeObserver):
    """The clip of least squared error of each batch (OMSE on activations), averaged over batches.

    Attributes:
        power: Of the error that is the least on the mean.

    Sides are tried at ``share`` steps between a fifth and the whole of what was seen; first both
    together, then each by itself.
    """

    power: ClassVar[int] = 2
    steps = 40

    def batch_range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Clips by a search over shares of the batch's range."""
        low, high = minmax_range(x)
        flat = spread_sample(x, SAMPLE)
        shares = torch.linspace(0.2, 1.0, self.steps, device=x.device)
        both = self._best(flat, low * shares, high * shares)
        low, high = low * shares[both], high * shares[both]
        if self.symmetric or float(low) == 0 or float(high) == 0:
            return low, high
        around = torch.linspace(0.6, 1.4, self.steps, device=x.device)
        floor, ceiling = minmax_range(x)
        lows = torch.maximum(low * around, floor)
        low = lows[self._best(flat, lows, high.expand(self.steps))]
        highs = torch.minimum(high * around, ceiling)
        high = highs[self._best(flat, low.expand(self.steps), highs)]
        return low, high

    def _best(self, x: Tensor, lows: Tensor, highs: Tensor) -> int:
        """Position of the pair with the least squared error on x (n,)."""
        scale, zero = uniform_qparams(
            lows, highs, self.bits, self.symmetric, self.quant_min, self.quant_max, self.eps
        )
        scale, zero = scale.unsqueeze(1), zero.unsqueeze(1)
        errors = []
        for s, z in zip(scale, zero, strict=True):
            code = (torch.round(x / s) + z).clamp(self.quant_min, self.quant_max)
            errors.append(((code - z) * s - x).abs().pow(self.power).sum())
        return int(torch.stack(errors).argmin())


class LeastCubesObserver(LeastSquaresObserver):
    """The same of the error's cubed magnitude: between least squares and the whole range.

    What a clip cuts off a few large values costs a network more than its square says.
    """

    power = 3
