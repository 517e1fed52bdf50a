"""PWLQ's split arithmetic equals the dequantized product exactly, in integers and in fractions."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from split_arithmetic import SplitWeight, accumulate, split_codes

from zaq_plugin.pwlq import PWLQSpec, quantize

SEEDS = st.integers(0, 2**32 - 1)


@given(st.integers(2, 6), st.booleans(), SEEDS)
def test_three_accumulators_equal_the_dequantized_product_in_integers(
    bits: int, shared: bool, seed: int
) -> None:
    """Steps and breakpoint that are integers, so that the format's own levels are."""
    spec = PWLQSpec(
        bits=bits, symmetry="symmetric", policy="given", grid="float", shared_endpoints=shared
    )
    center, tail = spec.piece_steps
    rng = np.random.default_rng(seed)
    a, c = (int(v) for v in rng.integers(1, 9, 2))
    p, m = a * center, a * center + c * tail
    w = torch.from_numpy(rng.normal(0, m / 2, (1, 200)).astype(np.float32))
    q = quantize(w, spec, edges=torch.tensor([[[float(p), float(m)]]]))
    values = q.dequantize().numpy().reshape(-1)
    levels = np.rint(values).astype(np.int64)
    assert np.abs(levels - values).max() < 1e-3, "integers, but for float32's last bits"
    x, zero = rng.integers(0, 256, 200), int(rng.integers(0, 256))
    split = split_codes(q.codes.numpy().reshape(-1), bits, shared_endpoints=shared)
    assert accumulate(x, split, zero).combine(a, c, p) == int(((x - zero) * levels).sum())
    assert split.magnitude.max() <= 2 ** (bits - 1), "the multiplier's operand has b - 1 bits"


@given(st.integers(2, 8), SEEDS)
def test_it_is_exact_for_ideal_levels_too(bits: int, seed: int) -> None:
    """Real breakpoints, as fractions: the sum of exact products is the combination, to the bit."""
    rng = np.random.default_rng(seed)
    p, m = (Fraction(float(v)) for v in np.sort(rng.uniform(0.1, 1.0, 2).astype(np.float32)))
    center = 2 ** (bits - 1) - 1
    tail = 2 ** (bits - 1)
    side = [p * k / center for k in range(1, center + 1)]
    side += [p + (m - p) * k / tail for k in range(1, tail + 1)]
    book = [-v for v in side[::-1]] + [Fraction(0)] + side
    codes = rng.integers(0, len(book), 50)
    x = rng.integers(0, 256, 50)
    expected = sum(int(xi) * book[code] for xi, code in zip(x, codes, strict=True))
    sums = accumulate(x, split_codes(codes, bits))
    assert sums.combine(p / center, (m - p) / tail, p) == expected


def test_three_accumulators_by_hand() -> None:
    weight = SplitWeight(np.array([2, 1, 3]), np.array([1, -1, 1]), np.array([False, True, True]))
    sums = accumulate(np.array([10, 20, 30]), weight)
    assert (sums.center, sums.tail, sums.offset) == (20, -20 + 90, -20 + 30)
    assert sums.combine(a=1, c=5, p=7) == 10 * 2 - 20 * (7 + 5) + 30 * (7 + 15)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"codes of 2 MAC bits lie in \[0, 6\]"):
        split_codes(np.array([7]), 2)
    weight = split_codes(np.array([3]), 2)
    with pytest.raises(TypeError, match="activations must be integers; got float64"):
        accumulate(np.array([1.0]), weight)
    with pytest.raises(ValueError, match=r"activations of shape \(2,\)"):
        accumulate(np.array([1, 2]), weight)
    with pytest.raises(ValueError, match="must have one shape"):
        SplitWeight(np.array([1]), np.array([1, 1]), np.array([True]))
    with pytest.raises(ValueError, match="signs must be -1 or 1"):
        SplitWeight(np.array([1]), np.array([2]), np.array([True]))
