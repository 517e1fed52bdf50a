"""Requantisation in integers: accumulators of int32, fixed-point multipliers, a rounding shift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from zaq_onnx.graph import Array

FRACTION = 31
"""Bits of a multiplier's fraction: as in int32 fixed point."""


@dataclass(frozen=True)
class Codes:
    """Integers on a grid: ``(values - zero) * scale``.

    Attributes:
        values: Integers, of a small type.
        scale: () or (channels,) float32. Not touched in inference: it only makes multipliers.
        zero: Integer that stands for zero.
        axis: Axis of the channels.
    """

    values: Array
    scale: Array
    zero: int
    axis: int = 1

    def centered(self) -> Array:
        """``values - zero``, int32."""
        centered: Array = self.values.astype(np.int32) - np.int32(self.zero)
        return centered


@dataclass(frozen=True)
class Sum:
    """A sum of integers on several grids, not rounded yet: ``sum_i values_i * scale_i``.

    Attributes:
        terms: (int32 values, scale per channel or one) of each.
        floor: Whether it is limited to zero and above.
    """

    terms: tuple[tuple[Array, Array], ...]
    floor: bool = False


Value = Codes | Sum


def multiplier(scale: float) -> tuple[int, int]:
    """``scale`` as ``m / 2^shift`` with ``m`` of 31 bits.

    Raises:
        ValueError: it is not positive and finite.
    """
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"a requantisation scale must be positive and finite; got {scale}.")
    fraction, exponent = np.frexp(scale)
    return round(float(fraction) * 2**FRACTION), FRACTION - int(exponent)


def requantize(total: Sum, scale: float, zero: int, dtype: np.dtype[Any]) -> Array:
    """Integers of the grid (scale, zero), by integer multiplication and a rounding shift.

    Rounds half away from zero; saturates at the type's limits.
    """
    whole: Array | None = None
    shift = 40
    for values, scales in total.terms:
        if values.dtype != np.int32:
            raise TypeError(f"accumulators must be int32; got {values.dtype}.")
        flat = [_fixed(float(s) / scale, shift) for s in scales.reshape(-1)]
        factors = np.array(flat, np.int64)
        if factors.size > 1:
            factors = factors.reshape([1, -1, *([1] * (values.ndim - 2))])
        part = values.astype(np.int64) * factors
        whole = part if whole is None else whole + part
    assert whole is not None
    half = np.int64(1) << np.int64(shift - 1)
    rounded = np.sign(whole) * ((np.abs(whole) + half) >> np.int64(shift))
    if total.floor:
        rounded = np.maximum(rounded, 0)
    limits = np.iinfo(dtype)
    return np.clip(rounded + zero, limits.min, limits.max).astype(dtype)


def _fixed(scale: float, shift: int) -> int:
    """A 31-bit multiplier brought to a common shift."""
    value, own = multiplier(scale)
    if own >= shift:
        return (value + (1 << (own - shift) >> 1)) >> (own - shift)
    return value << (shift - own)
