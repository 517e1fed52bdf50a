"""Ranges of activations, and edges of every channel of a weight, as pure functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zaq_plugin.pwlq.base import Format
from zaq_plugin.pwlq.checks import check_finite, check_spec, check_tensor, normalize_axis
from zaq_plugin.pwlq.kernels import channels_of, to_rows

TOP_K = 10


def minmax_range(x: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value, as 0-d tensors."""
    check_tensor(x, "x")
    low, high = torch.aminmax(x)
    return low, high


def percentile_range(x: Tensor, percent: float) -> tuple[Tensor, Tensor]:
    """The (100 - percent)th and percent-th percentiles of all values (nearest rank, exact).

    Raises:
        ValueError: unless 50 < percent <= 100.
    """
    check_tensor(x, "x")
    if not 50 < percent <= 100:
        raise ValueError(f"percent must be in (50, 100]; got {percent}. A common value is 99.9.")
    flat = x.reshape(-1).float()
    last = flat.numel() - 1
    rank = min(last, max(0, round(last * percent / 100)))
    high = torch.kthvalue(flat, rank + 1).values
    low = torch.kthvalue(flat, last - rank + 1).values
    return low.to(x.dtype), high.to(x.dtype)


def topk_median_range(x: Tensor, k: int = TOP_K) -> tuple[Tensor, Tensor]:
    """Median of the k smallest and of the k largest values (PWLQ section 4.1, "top-10 median").

    A median of an even number of values is the mean of the two in the middle.

    Raises:
        ValueError: if k < 1.
    """
    check_tensor(x, "x")
    if k < 1:
        raise ValueError(f"k must be at least 1; got {k}. The paper uses {TOP_K}.")
    flat = x.reshape(-1).float()
    k = min(k, flat.numel())
    low = _median(torch.topk(flat, k, largest=False).values)
    high = _median(torch.topk(flat, k).values)
    return low.to(x.dtype), high.to(x.dtype)


def spread_sample(x: Tensor, count: int) -> Tensor:
    """About ``count`` values of x, (n,), from all over every one of its axes.

    Every n-th value with n a divisor of the width would be one column of every image: its border,
    if padding makes that special. So n shares no factor with the number of values.

    Args:
        x: any shape; all of its values where they are ``count`` or fewer.
        count: how many; never more than twice as many, nor so few that the half is missing.
    """
    total = x.numel()
    step = max(1, total // count)
    while math.gcd(step, total) > 1:
        step += 1
    return x.flatten()[::step]


def _median(values: Tensor) -> Tensor:
    ordered, count = values.sort().values, values.numel()
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2


_MANY = 127
"""Steps from which it costs next to nothing to make them wider by a half of one."""
_HALFWAY = 1e-3
"""How near the middle between two levels zero lies there, in steps."""


def uniform_qparams(
    low: Tensor,
    high: Tensor,
    bits: int = 8,
    symmetric: bool = False,
    quant_min: int | None = None,
    quant_max: int | None = None,
    eps: float = torch.finfo(torch.float32).eps,
) -> tuple[Tensor, Tensor]:
    """Scale and zero point of an affine integer grid for the range [low, high].

    The range is widened to contain zero, so that zero is exact. Where zero would lie halfway
    between two levels, as in [-1, 1] with 256 levels, grids of seven bits and more get steps a
    little wider, so that both ends stay inside. Pixels of eight bits that are normalised to
    [-1, 1] would all be halfway between two levels otherwise: no values lose more by rounding, and
    runtimes round them to different sides.

    Args:
        low, high: range, any equal shape.
        bits: width; the default integer range is [0, 2^b - 1], or [-(2^(b-1) - 1), 2^(b-1) - 1] if
            symmetric.
        symmetric: one scale for both signs and zero point 0 in a signed range (the middle
            otherwise).
        quant_min, quant_max: another integer range.
        eps: smallest scale.

    Returns:
        float32 scale and int32 zero point, of low's shape.
    """
    if quant_min is None or quant_max is None:
        half = 2 ** (bits - 1) - 1
        quant_min, quant_max = (-half, half) if symmetric else (0, 2**bits - 1)
    low = low.float().clamp(max=0)
    high = high.float().clamp(min=0)
    if symmetric:
        reach = torch.maximum(high, -low)
        middle = 0 if quant_min < 0 else (quant_min + quant_max + 1) // 2
        scale = (reach / (quant_max - middle)).clamp(min=eps)
        return scale, torch.full_like(scale, middle, dtype=torch.int32)
    steps = quant_max - quant_min
    scale = ((high - low) / steps).clamp(min=eps)
    place = -low / scale  # of zero, in steps from the lowest level
    zero = place.round()
    if steps >= _MANY:
        halfway = (place - place.floor() - 0.5).abs() < _HALFWAY
        zero = torch.where(halfway, place.floor().clamp(min=1), zero)
        reach = torch.maximum(-low / zero, high / (steps - zero))
        scale = torch.where(halfway, reach, scale)
    zero_point = (quant_min + zero).clamp(quant_min, quant_max)
    return scale, zero_point.to(torch.int32)


def solve_edges(w: Tensor, spec: Format, axis: int | None = 0) -> Tensor:
    """Choose clip and breakpoints of every channel (PWLQ sections 3.2 and 3.3).

    Args:
        w: values to represent, any shape; statistics are taken in float32.
        spec: the format; its ``policy`` (or ``clip``) decides how.
        axis: channel axis, or None for one grid per tensor.

    Returns:
        (sides, channels, n + 1) float32 magnitudes p_1 <= ... <= p_n <= m in w's units; sides is
        (positive, negative) for asymmetric specs and has length 1 otherwise. A uniform spec has n
        = 0; for other formats see their ``solve``.

    Raises:
        TypeError: if w is no floating-point tensor or spec no spec.
        ValueError: if w is empty or contains NaN or infinity, the axis does not exist, or the
            policy is ``given``.
    """
    spec = check_spec(spec)
    check_tensor(w)
    axis = normalize_axis(w, axis)
    check_finite(w)
    return torch.ops.zaq.pwlq_solve(w.detach(), spec.to_json(), axis)


def edges_for(w: Tensor, spec: Format, axis: int | None) -> Tensor:
    """`solve_edges` without checks; axis is normalised."""
    # Contiguous, so that sums run in the same order for any memory layout.
    edges = spec.solve(to_rows(w, axis).contiguous())
    expected = (spec.sides, channels_of(w, axis), spec.edge_count)
    return edges.reshape(expected).contiguous()
