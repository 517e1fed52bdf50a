"""Activation ranges that are chosen, not just measured: by formula, or by squared error."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from zaq_plugin._range_observer import RangeObserver
from zaq_plugin.ptq.analytic import analytic_range
from zaq_plugin.pwlq import minmax_range, uniform_qparams
from zaq_plugin.pwlq.ranges import spread_sample

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
