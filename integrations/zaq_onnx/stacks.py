"""Weights to be packed, and those that are unfolded together: codes, and what they index with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zaq_onnx.codes import Coded, pairs_of, pairs_pay, planes_of
from zaq_onnx.graph import Array

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


class Stack:
    """Weights of one shape per channel, which are unfolded together.

    Attributes:
        items: They.
        codes: (channels, codes a channel).
        width: Bits of a code.
        pairs: Whether two codes at a time are an index.
        planes: Bits, position of the lowest bit, and values of the parts of an index.
        shape: Of an index.
        whole: Of the weights together, the channels first.
        entries: Of a table for each codebook.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        head, width = items[0], items[0].coded.width
        codes = np.concatenate([item.coded.codes for item in items])
        self.items, self.codes, self.width, self.pairs = items, codes, width, head.pairs
        self.planes = pairs_of(codes, width) if head.pairs else planes_of(codes, width)
        self.entries = 4**width if head.pairs else 2**width
        self.whole = (sum(item.shape[head.axis] for item in items), *head.tail)
        cut = [bits for bits, _, _ in self.planes if bits < 4]
        values = self.planes[0][2]
        self.shape = values.reshape(_shape_of_codes(values, cut, self.whole, head.pairs)).shape
        self.rows = len(codes)

    def joins(self, largest: int) -> bool:
        """Whether codes are a whole number of bytes in every plane, and at most so many."""
        row = max(8 // bits for bits, _, _ in self.planes)
        return not self.pairs and self.codes.size % row == 0 and self.codes.size <= largest


def _shape_of_codes(
    codes: Array, cut: Sequence[int], whole: tuple[int, ...], pairs: bool
) -> tuple[int, ...]:
    """Shape of an index; where possible, rows of what a byte of the smallest plane holds.

    Reshaping costs a copy of every index. With a dimension of two for each halving, bytes of every
    plane are rows, and none needs it.

    Args:
        codes: (channels, codes or pairs of them).
        cut: Bits of planes whose bytes hold several values.
        whole: Shape of the weight, the channels first.
        pairs: Whether two codes at a time are an index.
    """
    last = twos(min(cut)) if cut else ()
    if last and codes.shape[1] % 2 ** len(last) == 0:
        return (len(codes), -1, *last)
    return codes.shape if pairs else whole


def twos(bits: int) -> tuple[int, ...]:
    """Shape of what a byte holds: a two for each halving."""
    return (2,) * ((8 // bits).bit_length() - 1)
