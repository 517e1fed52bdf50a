"""PWLQ's own arithmetic: one multiplier, three accumulators (Fang et al., ECCV 2020, section 3.4).

A weight of the center is ``sign * a k``, one of the tail is ``sign * (p + c k)``, with a step a of
the center, a step c of the tail, the breakpoint p, and k an integer of b - 1 bits. The products
with the center, the products with the tail, and the plain sum of activations that meet a tail
weight are accumulated apart, in integers; constants are multiplied in once, at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from zaq_onnx.graph import Array


@dataclass(frozen=True)
class SplitWeight:
    """Weights of one channel in the form that the split hardware reads.

    Attributes:
        magnitude: Integers k >= 0 within the piece, at most b - 1 bits.
        sign: -1 or 1; any for zero.
        tail: Whether a weight lies in the tail.
    """

    magnitude: Array
    sign: Array
    tail: Array

    def __post_init__(self) -> None:
        shapes = {self.magnitude.shape, self.sign.shape, self.tail.shape}
        if len(shapes) > 1:
            raise ValueError(f"magnitude, sign and tail must have one shape; got {shapes}.")
        if self.magnitude.min(initial=0) < 0 or not set(np.unique(self.sign)) <= {-1, 1}:
            raise ValueError("magnitudes must not be negative, and signs must be -1 or 1.")


def split_codes(codes: Array, bits: int, *, shared_endpoints: bool = False) -> SplitWeight:
    """Take the codes of a symmetric PWLQ codebook with one breakpoint apart.

    Args:
        codes: Positions in the ascending codebook.
        bits: MAC bits b: the center has K = 2^(b-1) - 1 steps a side, the tail K + 1, or K with
            shared endpoints.
        shared_endpoints: As in ``PWLQSpec``.

    Returns:
        Magnitude, sign and region. The tail's magnitudes start at 1: its 0 would be the breakpoint.

    Raises:
        ValueError: a code out of range.
    """
    center = 2 ** (bits - 1) - 1
    steps = center if shared_endpoints else center + 1
    side = center + steps
    if codes.min(initial=0) < 0 or codes.max(initial=0) > 2 * side:
        raise ValueError(f"codes of {bits} MAC bits lie in [0, {2 * side}].")
    position = codes.astype(np.int64) - side
    distance = np.abs(position)
    tail = distance > center
    return SplitWeight(
        np.where(tail, distance - center, distance), np.where(position < 0, -1, 1), tail
    )


@dataclass(frozen=True)
class Accumulators:
    """What the hardware holds when a dot product is through.

    Attributes:
        center: ``<X, W1>``, products with weights of the center.
        tail: ``<X, W2>``, products with weights of the tail, counted from the breakpoint.
        offset: ``<X, sign>`` over weights of the tail.
    """

    center: int
    tail: int
    offset: int

    def combine(self, a: Any, c: Any, p: Any) -> Any:
        """``a center + c tail + p offset``: exact for whatever numbers a, c and p are."""
        return a * self.center + c * self.tail + p * self.offset


def accumulate(x: Array, weight: SplitWeight, zero: int = 0) -> Accumulators:
    """One dot product in split arithmetic.

    Args:
        x: Integers of the activations, as many as weights.
        weight: The weights.
        zero: Zero point of the activations.

    Raises:
        TypeError: the activations are no integers.
        ValueError: their number is not that of the weights.
    """
    if x.dtype.kind not in "iu":
        raise TypeError(f"activations must be integers; got {x.dtype}.")
    if x.shape != weight.magnitude.shape:
        raise ValueError(f"activations of shape {x.shape}, weights of {weight.magnitude.shape}.")
    signed = weight.sign * (x.astype(np.int64) - zero)
    products = signed * weight.magnitude
    return Accumulators(
        int(products[~weight.tail].sum()),
        int(products[weight.tail].sum()),
        int(signed[weight.tail].sum()),
    )
