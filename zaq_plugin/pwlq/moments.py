"""Squared error of any grid on given data, from one histogram: the engine of every search.

With G(t) = sum over values a < t of (t - a), the squared error of a sorted set of levels L with
thresholds T (midpoints) is

    sum_k (L_last - a_k)^2 - 2 sum_j (L_{j+1} - L_j) G(T_j),

because moving a value below a threshold from the upper to the lower level changes its squared
error by 2 (L_{j+1} - L_j)(a - T_j). G is convex and smooth, and is read off a table by linear
interpolation. For thresholds off the midpoint (the overlapping grid), the count N(T_j) of values
below enters as well.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """Tables of one side, or of a whole signed range, over ``bins`` equal bins per channel.

    Attributes:
        low: (C,) lower end of the range.
        width: (C,) width of a bin; 1 for an empty range.
        area: (C, bins + 1) G at the bin edges, divided by the number of values.
        below: (C, bins + 1) share of values below each bin edge.
        mean: (C,) mean value.
        square: (C,) mean square.
    """

    low: Tensor
    width: Tensor
    area: Tensor
    below: Tensor
    mean: Tensor
    square: Tensor


def measure(rows: Tensor, low: Tensor, high: Tensor, bins: int, dtype: torch.dtype) -> Moments:
    """Tabulate the values of each channel.

    Args:
        rows: (C, K) values, all within [low, high].
        low: (C,), high: (C,) range of each channel.
        bins: number of bins.
        dtype: of the tables; float64 is needed above 5 bits, whose errors are small differences.
    """
    length = rows.shape[1]
    span = high - low
    width = torch.where(span > 0, span / bins, torch.ones_like(span))
    shifted = rows - low.unsqueeze(1)
    index = (shifted / width.unsqueeze(1)).to(torch.int64).clamp_(0, bins - 1)
    exact = rows.double()
    inside = exact if not bool(low.any()) else shifted.double()
    count, mass = (
        torch.nn.functional.pad(sums / length, (1, 0)).cumsum(1)
        for sums in _histograms(index, inside, bins)
    )
    edges = torch.arange(bins + 1, dtype=torch.float64, device=rows.device)
    area = edges * width.double().unsqueeze(1) * count - mass
    return Moments(
        low.to(dtype),
        width.to(dtype),
        area.to(dtype),
        count.to(dtype),
        exact.mean(1).to(dtype),
        exact.square().mean(1).to(dtype),
    )


def _histograms(index: Tensor, values: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """(C, bins) how many values fall in each bin of their channel, and their sums; float64."""
    channels = index.shape[0]
    if index.is_cpu:
        first = torch.arange(channels, device=index.device).unsqueeze(1) * bins
        flat, size = (index + first).view(-1), channels * bins
        count = torch.bincount(flat, minlength=size).double()
        mass = torch.bincount(flat, weights=values.reshape(-1), minlength=size)
        return count.view(channels, bins), mass.view(channels, bins)
    table = torch.zeros(channels, bins, dtype=torch.float64, device=index.device)
    ones = torch.ones_like(values)
    return table.scatter_add(1, index, ones), table.scatter_add(1, index, values)


def _interpolate(table: Tensor, position: Tensor) -> Tensor:
    """table (C, B + 1) at fractional positions (C, M), clamped to the table."""
    last = table.shape[1] - 1
    position = position.clamp(0, last)
    left = position.to(torch.int64).clamp_(max=last - 1)
    at_left = torch.gather(table, 1, left)
    return at_left + (torch.gather(table, 1, left + 1) - at_left) * (position - left)


def _area(moments: Moments, threshold: Tensor) -> Tensor:
    """G(t), (C, M); above the range it goes on with slope 1, below it is 0."""
    last = moments.area.shape[1] - 1
    position = (threshold - moments.low.unsqueeze(1)) / moments.width.unsqueeze(1)
    beyond = (position - last).clamp_(min=0) * moments.width.unsqueeze(1)
    return _interpolate(moments.area, position) + beyond


def mean_squared_error(
    moments: Moments, levels: Tensor, thresholds: Tensor | None = None
) -> Tensor:
    """Mean squared error of candidate grids.

    Args:
        moments: tables of C channels.
        levels: (C, Q, L), Q candidate grids per channel; sorted unless thresholds are given.
        thresholds: (C, Q, L - 1) decision thresholds, where they are not the midpoints.

    Returns:
        (C, Q).
    """
    channels, queries, count = levels.shape
    levels = levels.to(moments.area.dtype)
    step = levels[..., 1:] - levels[..., :-1]
    middle = (levels[..., 1:] + levels[..., :-1]) / 2
    cut = middle if thresholds is None else thresholds.to(levels.dtype)
    area = _area(moments, cut.reshape(channels, -1)).view(channels, queries, count - 1)
    saved = step * area
    if thresholds is not None:
        position = (cut - moments.low[:, None, None]) / moments.width[:, None, None]
        below = _interpolate(moments.below, position.reshape(channels, -1))
        saved = saved + step * (middle - cut) * below.view_as(area)
    top = levels[..., -1]
    mean, square = moments.mean.unsqueeze(1), moments.square.unsqueeze(1)
    return square - 2 * top * mean + top * top - 2 * saved.sum(-1)
