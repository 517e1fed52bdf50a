"""Observers: they watch tensors and say on which grid to put them.

Activations (per tensor): `MinMaxObserver`, `PercentileObserver`, `TopKMedianObserver`.
Weights (per output channel): `PWLQPerChannelObserver`, from `zaq_plugin.weight_observer`.
All of them serve torch.ao and torchao alike; see `zaq_plugin._host_module`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zaq_plugin._range_observer import RangeObserver, add_call, range_of
from zaq_plugin.pwlq import (
    minmax_range,
    percentile_range,
    topk_median_range,
)
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
        lowest, highest = torch.cat([self.lowest, lowest]), torch.cat([self.highest, highest])
        lowest, highest = lowest.topk(self.k, largest=False).values, highest.topk(self.k).values
        values = self.pooled[0] + x.numel()
        samples = self.pooled[1] + (x.shape[0] if x.dim() > 1 else 1)
        k = (values.double() * self.share).long().clamp(1, self.k)
        ends = _median_of(lowest, k), _median_of(highest, k)
        complete = samples >= self.samples
        tally = torch.where(self.pooled[1] == 0, self._known(), self.tally)
        tally = torch.where(complete, add_call(tally, *ends), tally)
        weight = torch.where(complete, torch.zeros_like(ends[0]), samples / self.samples)
        self._publish(*range_of(tally, (*ends, weight)))
        self.tally.copy_(tally)
        self.lowest.copy_(lowest.masked_fill(complete, torch.inf))
        self.highest.copy_(highest.masked_fill(complete, -torch.inf))
        self.pooled.copy_(torch.stack([values, samples]) * ~complete)

    def reset_min_max_vals(self) -> None:
        """Forget everything seen."""
        super().reset_min_max_vals()
        self.lowest.fill_(torch.inf)
        self.highest.fill_(-torch.inf)
        self.pooled.zero_()


def _median_of(ordered: Tensor, k: Tensor) -> Tensor:
    """Median of the first k of ordered values; k a 0-d tensor."""
    pair = torch.stack([(k - 1) // 2, k // 2])
    return ordered[pair].sum() / 2


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
