"""Do torch's int8 kernels add products exactly on this processor? They are asked: two products."""

from __future__ import annotations

import warnings
from functools import cache

import torch

from zaq_fx._compat import silence_host

_CHANNELS, _SIDE = 64, 4


@cache
def saturates() -> bool:
    """Whether the int8 convolution of the engine in use loses what exceeds 16 bits.

    Every activation is 255 and every weight 127: two products are 64,770, more than 16 bits hold.
    On a grid that makes the true sum 255, every output must be 255.

    Raises:
        RuntimeError: this build of torch has no int8 kernels.
    """
    with warnings.catch_warnings():
        silence_host()
        return _loses_something()


def _loses_something() -> bool:
    x = torch.quantize_per_tensor(
        torch.full((1, _CHANNELS, _SIDE, _SIDE), 255.0), 1.0, 0, torch.quint8
    )
    channels = torch.ones(_CHANNELS, dtype=torch.double)
    weight = torch.quantize_per_channel(
        torch.full((_CHANNELS, _CHANNELS, 1, 1), 127.0),
        channels,
        torch.zeros(_CHANNELS, dtype=torch.long),
        0,
        torch.qint8,
    )
    operators = torch.ops.quantized
    packed = operators.conv2d_prepack(weight, None, [1, 1], [0, 0], [1, 1], 1)
    output = operators.conv2d.new(x, packed, 127.0 * _CHANNELS, 0)
    return bool((output.int_repr().int() - 255).abs().max() > 2)
