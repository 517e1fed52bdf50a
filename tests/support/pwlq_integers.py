"""Integers that PWLQ makes of random weights with long tails."""

import numpy as np
import torch
from numpy.typing import NDArray

from zaq_plugin import PWLQSpec, quantize


def pwlq(shape: tuple[int, ...], bits: int = 4, seed: int = 0) -> NDArray[np.int8]:
    """int8, channels first."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) ** 3
    integers: NDArray[np.int8] = quantize(values, PWLQSpec(bits)).integer_weight().numpy()
    return integers
