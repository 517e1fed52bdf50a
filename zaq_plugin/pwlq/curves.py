"""Codebooks of PWLQ as three numbers a channel: two breakpoints and how the clips differ.

On the int8 grid the larger clip of a channel is 127; its levels follow from the breakpoints ``p``
of both signs and from the other clip, by PWLQ section 3.1. These three numbers have twelve bits
each, 4.5 bytes in place of 16 or 32. Where weights were made smaller for the sake of kernels that
saturate, the larger clip is an integer below 127 and takes a byte more. Levels that no choice of
the numbers gives are listed apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

NIBBLES = 9
"""Of 4 bits, per channel: three for each number, the lowest first; a larger clip takes two more."""

LARGEST = 127
BREAKPOINT = 32
"""Steps of a breakpoint within one integer."""

CLIP = 16
"""Steps of a clip within one integer."""

MARGIN = 1e-3
"""Distance from a tie, at least: runtimes may add floats in any order."""


@dataclass(frozen=True)
class Shape:
    """How many levels the pieces of one side have: PWLQ with one breakpoint.

    Attributes:
        center: Up to the breakpoint, without zero.
        tail: Beyond it.
        scaled: Whether the larger clip is a number of its own, an integer, in place of 127.
    """

    center: int
    tail: int
    scaled: bool = False

    @property
    def side(self) -> int:
        """Levels of one sign."""
        return self.center + self.tail

    @property
    def width(self) -> int:
        """Bits of a code."""
        return int(2 * self.side).bit_length()

    @cached_property
    def fractions(self) -> Array:
        """(2, side): what a side's levels take of its breakpoint, and of its clip."""
        inner = np.arange(1, self.center + 1) / self.center
        outer = np.arange(1, self.tail + 1) / self.tail
        both = [np.concatenate([inner, 1 - outer]), np.concatenate([0 * inner, outer])]
        shares: Array = np.array(both, np.float32)
        return shares

    @property
    def nibbles(self) -> int:
        """Per channel."""
        return NIBBLES + 2 * self.scaled

    @property
    def numbers(self) -> tuple[Array, Array]:
        """(nibbles, 4) and (4,): breakpoints (+, -) and clips (+, -); then cut at the larger."""
        digits = 16.0 ** np.arange(3)
        factors = np.zeros((self.nibbles, 4), np.float32)
        factors[0:3, 0] = factors[3:6, 1] = digits / BREAKPOINT
        factors[6:9, 2], factors[6:9, 3] = -digits / CLIP, digits / CLIP
        factors[9:, 2:] = digits[: len(factors[9:]), None]
        middle, larger = 2048 / CLIP, 0 if self.scaled else LARGEST
        return factors, np.array([0, 0, larger + middle, larger - middle], np.float32)

    @property
    def larger(self) -> Array:
        """(nibbles, 1) float32: the larger clip of nibbles, if it is a number of its own."""
        factors = np.zeros((self.nibbles, 1), np.float32)
        factors[NIBBLES:, 0] = 1, 16
        return factors

    @property
    def spread(self) -> Array:
        """(4, 2^width): levels of these four; negative, zero, positive, the last one repeated."""
        table = np.zeros((4, 2**self.width), np.float32)
        side, (of_breakpoint, of_clip) = self.side, self.fractions
        for row, fractions in ((0, of_breakpoint), (2, of_clip)):
            table[row, side + 1 : 2 * side + 1] = fractions
            table[row, 2 * side + 1 :] = fractions[-1]
            table[row + 1, :side] = -fractions[::-1]
        return table


def exact_levels(numbers: Array, shape: Shape) -> Array:
    """(channels, 2^width) float32: levels of breakpoints and clips, not rounded yet.

    Args:
        numbers: (channels, 4) breakpoints (+, -) and clips (+, -).
        shape: The pieces.
    """
    levels: Array = numbers.astype(np.float32) @ shape.spread
    return levels


def numbers_of(nibbles: Array, shape: Shape) -> Array:
    """(channels, 4) float32: breakpoints and clips, as the graph computes them."""
    factors, start = shape.numbers
    digits = nibbles.astype(np.float32)
    larger = digits @ shape.larger if shape.scaled else np.float32(LARGEST)
    numbers: Array = np.minimum(digits @ factors + start, larger)
    return numbers


SHAPES = tuple(Shape(k - 1, tail) for k in (2, 4, 8, 16) for tail in (k, k - 1))


def books(nibbles: Array, shape: Shape) -> Array:
    """(channels, 2^width) int8: the levels, as the graph computes them.

    Args:
        nibbles: (channels, `Shape.nibbles`) uint8.
        shape: The pieces.
    """
    return np.rint(exact_levels(numbers_of(nibbles, shape), shape)).astype(np.int8)


def used_levels(rows: Array) -> Array:
    """(channels, 256) bool, which of the integers from -128 each row of int8 has."""
    used = np.zeros((len(rows), 256), bool)
    used[np.arange(len(rows))[:, None], rows.astype(np.int64) + 128] = True
    return used


def codes_in(rows: Array, book: Array) -> Array:
    """(channels, weights a channel) uint8: the first place of each integer in its row's book.

    Args:
        rows: int8, of integers that the books hold.
        book: (channels, levels) int8.
    """
    codes = np.zeros((len(book), 256), np.uint8)
    for code in reversed(range(book.shape[1])):
        codes[np.arange(len(book)), book[:, code].astype(np.int64) + 128] = code
    places: Array = codes[np.arange(len(book))[:, None], rows.astype(np.int64) + 128]
    return places


@dataclass(frozen=True)
class Curve:
    """Codebooks of a weight.

    Attributes:
        shape: Levels of the pieces.
        nibbles: (channels, `Shape.nibbles`) uint8.
        book: (channels, 2^width) int8, exceptions included.
        exceptions: (count, 2) channel and code of levels that the numbers do not give.
    """

    shape: Shape
    nibbles: Array
    book: Array
    exceptions: Array

    @property
    def bytes(self) -> float:
        """What it takes in a file."""
        return self.nibbles.size / 2 + 5 * len(self.exceptions)
