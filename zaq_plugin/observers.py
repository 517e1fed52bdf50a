"""Observers: they watch tensors and say on which grid to put them.

Activations (per tensor): `MinMaxObserver`, `PercentileObserver`, `TopKMedianObserver`.
Weights (per output channel): `PWLQPerChannelObserver`, from `zaq_plugin.weight_observer`.
All of them serve torch.ao and torchao alike; see `zaq_plugin._host_module`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from zaq_plugin._range_observer import (
    Numbers,
    RangeObserver,
    add_call,
    begin_with,
    namespace,
    range_of,
)
from zaq_plugin.pwlq import (
    minmax_range,
    percentile_range,
    topk_median_range,
)
from zaq_plugin.pwlq.eager import is_eager
from zaq_plugin.weight_observer import (
    PWLQPerChannelObserver,
    WeightFormat,
    weight_format,
)

__all__ = [
    "MinMaxObserver",
    "PWLQPerChannelObserver",
    "PercentileObserver",
    "TopKMedianObserver",
    "WeightFormat",
    "weight_format",
]


class MinMaxObserver(RangeObserver):
    """The whole range seen in any batch: nothing is clipped, outliers cost everybody precision."""

    def batch_range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest value."""
        return minmax_range(x)

    def _observe(self, x: Tensor) -> None:
        low, high = self.batch_range(x)
        first = self.num_batches == 0
        self.min_val.copy_(torch.where(first, low, torch.minimum(low, self.min_val)))
        self.max_val.copy_(torch.where(first, high, torch.maximum(high, self.max_val)))


class PercentileObserver(RangeObserver):
    """A percentile of each batch at either end, averaged over batches.

    Args:
        percent: Percentage of values inside, such as 99.99. Further arguments: `MinMaxObserver`.
    """

    def __init__(self, percent: float = 99.99, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 50 < percent <= 100:
            raise ValueError(f"PercentileObserver: percent must be in (50, 100]; got {percent}.")
        self.percent = percent

    def options(self) -> dict[str, Any]:
        """The percentage."""
        return {"percent": self.percent}

    def batch_range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The percentile at either end."""
        return percentile_range(x, self.percent)


class TopKMedianObserver(RangeObserver):
    """PWLQ's "top-10 median" (section 4): robust against single outliers, cheap, no histogram.

    Of each batch the median of the k smallest and of the k largest values, averaged over batches
    (the widest where calls lie too far apart to be batches of one signal). The paper's rule is one
    for batches: of a single image the ten largest values hold a good part of its range. So calls
    of fewer than ``samples`` samples (the first dimension) are taken together until they are as
    many, and what is left at the end counts by its share.

    Args:
        k: How many values at either end, but no more than ``share`` of the batch.
        share: The paper's activations have 10^5 values and more; in a batch of 40 (logits, the
            inner layer of squeeze-and-excitation) the median of the ten largest would clip the
            very values that matter.
        samples: Fewest samples of a batch. Further arguments: `MinMaxObserver`.
    """

    lowest: Tensor
    highest: Tensor
    pooled: Tensor

    def __init__(self, k: int = 10, share: float = 0.01, samples: int = 32, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < share <= 1:
            raise ValueError(f"TopKMedianObserver: share must be in (0, 1]; got {share}.")
        self.share = share
        for name, value in (("k", k), ("samples", samples)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"TopKMedianObserver: {name} must be an int >= 1; got {value!r}.")
        self.k, self.samples = k, samples
        none = torch.full((k,), torch.inf, device=self.min_val.device)
        self.register_buffer("lowest", none, persistent=False)
        self.register_buffer("highest", -none, persistent=False)
        pooled = torch.zeros(2, dtype=torch.int64, device=self.min_val.device)
        self.register_buffer("pooled", pooled, persistent=False)  # values, samples

    def options(self) -> dict[str, Any]:
        """How many values count, and of how many samples."""
        return {"k": self.k, "share": self.share, "samples": self.samples}

    def batch_range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Medians of the k smallest and the k largest values."""
        k = min(self.k, max(1, int(x.numel() * self.share)))
        lowest, highest = _extremes(x.reshape(-1), k)
        return topk_median_range(lowest, k)[0], topk_median_range(highest, k)[1]

    def _observe(self, x: Tensor) -> None:
        lowest, highest = _extremes(x.reshape(-1), self.k)
        lowest = torch.cat([self.lowest, lowest]).topk(self.k, largest=False).values
        highest = torch.cat([self.highest, highest]).topk(self.k).values
        seen: tuple[Numbers, ...] = (lowest, highest)
        state: tuple[Numbers, ...] = (self.tally, self.lowest, self.highest, self.pooled)
        state += self._range_before()
        single = all(t.dtype == torch.float32 for t in (x, self.tally, self.min_val))
        if single and not x.is_cuda and is_eager(x, *state):
            # A call of torch's takes ten times as long as numpy's, and training counts them.
            seen, state = (tuple(t.numpy() for t in group) for group in (seen, state))
        samples = x.shape[0] if x.dim() > 1 else 1
        with np.errstate(all="ignore"):
            self.pool(*seen, x.numel(), samples, *state)

    def pool(
        self,
        lowest: Numbers,
        highest: Numbers,
        numel: int,
        count: int,
        tally: Numbers,
        pooled_lowest: Numbers,
        pooled_highest: Numbers,
        pooled: Numbers,
        *before: Numbers,
    ) -> None:
        """Take the extremes of some samples into account; what was known is changed in place."""
        xp = namespace(tally)
        values, samples = pooled[:1] + numel, pooled[1:] + count
        k = xp.asarray(xp.asarray(values, dtype=xp.float64) * self.share, dtype=xp.int64)
        k = xp.where(k < 1, 1, xp.where(k > self.k, self.k, k))
        ends = _median_of(lowest, k), _median_of(highest, k)
        complete = samples >= self.samples
        known = begin_with(tally, *(number.reshape(1) for number in before))
        known = xp.where(pooled[1:] == 0, known, tally)
        known = xp.where(complete, add_call(known, *ends), known)
        weight = xp.asarray(samples, dtype=xp.float32) / self.samples
        weight = xp.where(complete, xp.zeros_like(weight), weight)
        low, high = range_of(known, (*ends, weight))
        _, min_val, max_val = before
        min_val[...], max_val[...], tally[...] = low[0], high[0], known
        pooled_lowest[...] = xp.where(complete, torch.inf, lowest)
        pooled_highest[...] = xp.where(complete, -torch.inf, highest)
        pooled[...] = xp.concatenate([values, samples]) * ~complete

    def reset_min_max_vals(self) -> None:
        """Forget everything seen."""
        super().reset_min_max_vals()
        self.lowest.fill_(torch.inf)
        self.highest.fill_(-torch.inf)
        self.pooled.zero_()


def _median_of(ordered: Numbers, k: Numbers) -> Numbers:
    """Median of the first k of ordered values; both are (1,)."""
    return (ordered[(k - 1) // 2] + ordered[k // 2]) / 2


def _extremes(flat: Tensor, k: int, width: int = 256) -> tuple[Tensor, Tensor]:
    """Parts of a long tensor that hold its k smallest and its k largest values.

    The k largest lie in the k pieces whose maxima are largest; one fast pass finds those.
    """
    pieces = flat.numel() // width
    if pieces < 4 * k:
        return flat, flat
    body, rest = flat[: pieces * width].view(pieces, width), flat[pieces * width :]
    low, high = body.amin(1), body.amax(1)  # aminmax takes ten times as long
    lowest, highest = low.topk(k, largest=False).indices, high.topk(k).indices
    return torch.cat([body[lowest].flatten(), rest]), torch.cat([body[highest].flatten(), rest])
