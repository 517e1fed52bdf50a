"""The range of many calls, from the ranges of single ones: decided here, for all range observers.

Calls whose ranges differ as batches of one signal do are averaged, as the PWLQ paper does. An
observer sees calls, not batches: a layer that is called on signals of different size within one
pass shows ranges that lie further apart, and no average covers the largest. There the range is
the widest.
"""

from __future__ import annotations

import torch
from torch import Tensor

SPREAD = 0.25
"""Standard deviation of the ends of calls' ranges, as a share of the mean range, up to which calls
are batches of one signal. Two signals in turn pass it when one is less than 0.6 of the other."""

SIZE = 7
"""Numbers of a tally: count; mean, squared deviations and extreme of the lower and upper ends."""


def empty_tally(device: torch.device | str | None = None) -> Tensor:
    """A tally of no calls, (`SIZE`,) float32."""
    return torch.zeros(SIZE, device=device)


def begin_with(tally: Tensor, count: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The tally, or if it is empty one of ``count`` calls that all had this range."""
    zero = torch.zeros_like(low)
    start = torch.stack([count.to(low.dtype), low, high, zero, zero, low, high])
    return torch.where((tally[0] == 0) & (count > 0), start, tally)


def add_call(tally: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The tally with one more call's range; ends are 0-d float32."""
    count, means, squares, ends = tally[0], tally[1:3], tally[3:5], tally[5:7]
    ends = torch.where(count == 0, torch.stack([low, high]), ends)
    ends = torch.stack([torch.minimum(ends[0], low), torch.maximum(ends[1], high)])
    new = torch.stack([low, high])
    step = new - means
    means = means + step / (count + 1)
    squares = squares + step * (new - means)
    return torch.cat([(count + 1).reshape(1), means, squares, ends])


def range_of(
    tally: Tensor, pending: tuple[Tensor, Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """(low, high) that stands for all calls, 0-d.

    Args:
        tally: of complete calls.
        pending: range of calls that are not complete yet, and their weight in [0, 1).
    """
    count, low, high = tally[0], tally[1], tally[2]
    if pending is not None:
        below, above, weight = pending
        share = torch.where(weight > 0, weight / (count + weight), torch.zeros_like(weight))
        low = torch.where(weight > 0, low + (below - low) * share, low)
        high = torch.where(weight > 0, high + (above - high) * share, high)
        # Alone, without the roundings of a sum with nothing.
        low, high = torch.where(share == 1, below, low), torch.where(share == 1, above, high)
    deviation = (tally[3:5].amax() / count.clamp(min=1)).sqrt()
    apart = deviation > SPREAD * (tally[2] - tally[1])
    low = torch.where(apart, torch.minimum(tally[5], low), low)
    return low, torch.where(apart, torch.maximum(tally[6], high), high)
