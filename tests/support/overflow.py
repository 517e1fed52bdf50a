"""Whether int8 weights overflow where two products are added in 16 bits: the oracle."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def walks(integers: np.ndarray, axis: int | None) -> list[np.ndarray]:
    """The weights of each channel in the orders in which kernels may add them: inputs last.

    One grid per tensor does not say which of the first two axes the inputs are on.
    """
    if axis is None:
        return [row.reshape(1, -1) for first in (0, 1) for row in walks(integers, first)]
    first = np.moveaxis(integers, axis, 0)
    first = first if first.ndim < 3 else np.moveaxis(first, 1, -1)
    return [first.reshape(len(first), -1)]


def overflows(integers: Tensor, axis: int | None) -> bool:
    """Whether any two neighbours' products with activations of 0 or 255 leave 16 bits."""
    output = False
    for rows in walks(integers.numpy().astype(np.int64), axis):
        above = 255 * (np.maximum(rows[:, 1:], 0) + np.maximum(rows[:, :-1], 0))
        below = 255 * (np.minimum(rows[:, 1:], 0) + np.minimum(rows[:, :-1], 0))
        output |= bool((above > 32767).any() or (below < -32768).any())
    return output
