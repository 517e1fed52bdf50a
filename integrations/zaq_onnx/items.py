"""A weight that is to be packed, and which weights are unfolded together."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zaq_onnx.codes import Coded, pairs_pay

_LARGE = 2**16
"""Weights of this size are unfolded one by one: splitting them costs more than nodes."""


@dataclass(frozen=True)
class Item:
    """A weight to be packed.

    Attributes:
        name: Of the tensor.
        coded: What is stored.
        shape: Of the weight.
        axis: Its channel axis.
    """

    name: str
    coded: Coded
    shape: tuple[int, ...]
    axis: int

    @property
    def shared(self) -> bool:
        """Whether all channels have one codebook."""
        return len(self.coded.codes) == 1

    @property
    def tail(self) -> tuple[int, ...]:
        """The shape of one channel."""
        return tuple(d for i, d in enumerate(self.shape) if i != self.axis)

    @property
    def kind(self) -> tuple[object, ...]:
        """Weights of one kind have their codebooks in one constant: their form, bits of a code."""
        curve = self.coded.curve
        form = curve.shape if curve is not None else "list"
        return form, self.coded.width

    @property
    def pairs(self) -> bool:
        """Whether two codes at a time are an index."""
        return pairs_pay(self.coded)

    @property
    def stack(self) -> tuple[object, ...]:
        """Weights of one stack are unfolded together."""
        alone = self.name if self.shared or math.prod(self.shape) >= _LARGE else ""
        return self.kind, self.pairs, self.tail, self.axis, alone
