"""Ranges of activations against numpy."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zaq_plugin.pwlq import minmax_range, percentile_range, topk_median_range, uniform_qparams
from zaq_plugin.pwlq.ranges import spread_sample

VALUES = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=60)


@given(VALUES, st.integers(1, 12))
def test_topk_median(values, k):
    low, high = topk_median_range(torch.tensor(values), k)
    ordered = np.sort(np.array(values, dtype=np.float64))
    assert float(low) == pytest.approx(np.median(ordered[:k]), rel=1e-6, abs=1e-6)
    assert float(high) == pytest.approx(np.median(ordered[-k:]), rel=1e-6, abs=1e-6)


@given(VALUES)
def test_minmax(values):
    low, high = minmax_range(torch.tensor(values))
    assert (float(low), float(high)) == (np.float32(min(values)), np.float32(max(values)))


def test_percentile():
    x = torch.randn(2001, generator=torch.Generator().manual_seed(0))
    low, high = percentile_range(x, 99)
    assert float(high) == pytest.approx(np.percentile(x.numpy(), 99), rel=1e-5)
    assert float(low) == pytest.approx(np.percentile(x.numpy(), 1), rel=1e-5)
    assert percentile_range(x, 100) == minmax_range(x)


@pytest.mark.parametrize("shape", [(64, 16, 32, 32), (9, 7, 14, 14), (7, 3, 3), (50,)], ids=str)
def test_a_sample_is_spread_over_every_axis(shape):
    count = 1500
    for axis, size in enumerate(shape):
        places = torch.arange(size).view([-1 if i == axis else 1 for i in range(len(shape))])
        sample = spread_sample(places.expand(shape), count)
        number = places.expand(shape).numel()
        assert min(number, count) / 2 <= len(sample) <= min(number, 2 * count)
        share = torch.bincount(sample, minlength=size) / len(sample) * size
        assert 0.6 < float(share.min()) <= float(share.max()) < 1.5


def test_errors():
    with pytest.raises(ValueError, match=r"percent must be in \(50, 100\]; got 10"):
        percentile_range(torch.ones(3), 10)
    with pytest.raises(ValueError, match="k must be at least 1; got 0"):
        topk_median_range(torch.ones(3), 0)
    with pytest.raises(ValueError, match="x is empty"):
        minmax_range(torch.ones(0))


@given(st.floats(-50, 50), st.floats(-50, 50), st.integers(2, 8), st.booleans())
def test_qparams_cover_the_range_and_zero(a, b, bits, symmetric):
    low, high = torch.tensor(min(a, b)), torch.tensor(max(a, b))
    scale, zero_point = uniform_qparams(low, high, bits, symmetric)
    bottom = -(2 ** (bits - 1) - 1) if symmetric else 0
    top = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
    assert bottom <= int(zero_point) <= top
    ends = ((bottom - int(zero_point)) * float(scale), (top - int(zero_point)) * float(scale))
    slack = 0.51 * float(scale)
    assert ends[0] <= min(float(low), 0) + slack
    assert ends[1] >= max(float(high), 0) - slack


@pytest.mark.parametrize("signed", [False, True])
def test_no_pixel_of_a_range_of_equal_ends_is_halfway_between_levels(signed):
    """8-bit pixels in [-1, 1]: rounding in exact fractions has no ties, and clips none."""
    limits = (-128, 127) if signed else (0, 255)
    scale, zero = uniform_qparams(
        torch.tensor(-1.0), torch.tensor(1.0), quant_min=limits[0], quant_max=limits[1]
    )
    step = Fraction(float(scale))
    places = [Fraction(2 * v - 255, 255) / step + int(zero) for v in range(256)]
    assert limits[0] - Fraction(1, 1000) <= places[0]
    assert places[-1] <= limits[1]
    ties = [abs(p - int(np.floor(float(p))) - Fraction(1, 2)) < Fraction(1, 1000) for p in places]
    assert sum(ties) == 0
    assert float(scale) < 2 / 255 * 1.005
    worst = max(abs(p - round(p)) for p in places)
    assert worst < Fraction(1, 2)
