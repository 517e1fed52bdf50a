"""Codebooks of PWLQ as three numbers a channel: two breakpoints and how the clips differ.

On the int8 grid the larger clip of a channel is 127; its levels follow from the breakpoints ``p``
of both signs and from the other clip, by PWLQ section 3.1. These three numbers have twelve bits
each, 4.5 bytes in place of 16 or 32. They are searched such that rounding gives the very integers
of the weight; levels that no choice gives are listed apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from zaq_onnx.graph import Array

NIBBLES = 9
"""Of 4 bits, per channel: three for each number, the lowest first."""

LARGEST = 127
_BREAKPOINT = 32
"""Steps of a breakpoint within one integer."""

_CLIP = 16
"""Steps of a clip within one integer."""

_MARGIN = 1e-3
"""Distance from a tie, at least: runtimes may add floats in any order."""

_CHUNK = 512
_NEAR = np.concatenate([np.arange(-17, 18), np.arange(18, 36, 2), np.arange(-34, -17, 2)])
"""Steps around a breakpoint that is known to about one integer."""


@dataclass(frozen=True)
class Shape:
    """How many levels the pieces of one side have: PWLQ with one breakpoint.

    Attributes:
        center: Up to the breakpoint, without zero.
        tail: Beyond it.
    """

    center: int
    tail: int

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
        made: Array = np.array(both, np.float32)
        return made

    @property
    def numbers(self) -> tuple[Array, Array]:
        """(9, 4) and (4,): breakpoints (+, -) and clips (+, -) of nibbles; then cut at 127."""
        digits = 16.0 ** np.arange(3)
        factors = np.zeros((NIBBLES, 4), np.float32)
        factors[0:3, 0] = factors[3:6, 1] = digits / _BREAKPOINT
        factors[6:9, 2], factors[6:9, 3] = -digits / _CLIP, digits / _CLIP
        middle = 2048 / _CLIP
        return factors, np.array([0, 0, LARGEST + middle, LARGEST - middle], np.float32)

    @property
    def spread(self) -> Array:
        """(4, 2^width): levels of these four; negative, zero, positive, the last one repeated."""
        made = np.zeros((4, 2**self.width), np.float32)
        side, (of_breakpoint, of_clip) = self.side, self.fractions
        for row, fractions in ((0, of_breakpoint), (2, of_clip)):
            made[row, side + 1 : 2 * side + 1] = fractions
            made[row, 2 * side + 1 :] = fractions[-1]
            made[row + 1, :side] = -fractions[::-1]
        return made


SHAPES = tuple(Shape(k - 1, tail) for k in (2, 4, 8, 16) for tail in (k, k - 1))


def books(nibbles: Array, shape: Shape) -> Array:
    """(channels, 2^width) int8: the levels, as the graph computes them.

    Args:
        nibbles: (channels, 9) uint8.
        shape: The pieces.
    """
    factors, start = shape.numbers
    numbers = np.minimum(nibbles.astype(np.float32) @ factors + start, np.float32(LARGEST))
    return np.rint(numbers @ shape.spread).astype(np.int8)


@dataclass(frozen=True)
class Curve:
    """Codebooks of a weight.

    Attributes:
        shape: Levels of the pieces.
        nibbles: (channels, 9) uint8.
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


def fit(used: Array, count: int) -> Curve | None:
    """The curve with which codes and codebooks are smallest; None if there is none.

    Args:
        used: (channels, 256) bool, which of the integers from -128 each channel uses.
        count: Weights a channel.
    """
    if used[:, 0].any():
        return None
    levels, found, size = int(used.sum(1).max(initial=0)), None, math.inf
    for shape in SHAPES:
        codes = len(used) * count * shape.width / 8
        if 2 * shape.side + 1 < levels or codes + len(used) * NIBBLES / 2 >= size:
            continue
        made = _fit(used, shape)
        if made is not None and codes + made.bytes < size:
            found, size = made, codes + made.bytes
    return found


def _fit(used: Array, shape: Shape) -> Curve | None:
    channels = len(used)
    sides = [used[:, 128:].copy(), used[:, :129][:, ::-1].copy()]
    sides[1] = sides[1][:, :128]
    tops = np.stack([np.where(s.any(1), 127 - s[:, ::-1].argmax(1), 0) for s in sides])
    larger = (tops[1] > tops[0]).astype(int)
    values = np.zeros((channels, 3), np.int64)
    values[:, 2] = 2048
    for sign in (0, 1):
        for free in (False, True):
            rows = np.flatnonzero((larger != sign) if free else (larger == sign))
            if not len(rows):
                continue
            breakpoint_, clip = _search(sides[sign][rows], tops[sign][rows], shape, free)
            values[rows, sign] = breakpoint_
            if free:
                less = LARGEST * _CLIP - clip
                values[rows, 2] = 2048 + less if sign == 0 else 2048 - less
    digits = values[:, :, None] >> (4 * np.arange(3)) & 15
    nibbles = digits.reshape(channels, NIBBLES).astype(np.uint8)
    return _patched(used, nibbles, shape)


def _patched(used: Array, nibbles: Array, shape: Shape) -> Curve | None:
    """Put levels that are used but not given where an entry is not needed."""
    book = books(nibbles, shape)
    channels = np.arange(len(used))[:, None]
    given = np.zeros_like(used)
    given[channels, book.astype(np.int64) + 128] = True
    lacking = used & ~given
    exceptions = []
    for channel in np.flatnonzero(lacking.any(1)):
        row = book[channel].astype(np.int64)
        again = np.concatenate([[False], row[1:] == row[:-1]])
        free = np.flatnonzero(~used[channel, row + 128] | again)
        missing = np.flatnonzero(lacking[channel]) - 128
        if len(free) < len(missing):
            return None
        for code, level in zip(free, missing, strict=False):
            book[channel, code] = level
            exceptions.append((channel, code))
    return Curve(shape, nibbles, book, np.array(exceptions, np.int64).reshape(-1, 2))


def _search(used: Array, tops: Array, shape: Shape, free: bool) -> tuple[Array, Array]:
    """Breakpoints and clips, in their steps, that give as many of one side's levels as possible.

    Args:
        used: (channels, 128) bool.
        tops: (channels,) the largest level used.
        shape: The pieces.
        free: Search the clip, too; else it is 127.
    """
    points, clips = np.zeros(len(used), np.int64), np.zeros(len(used), np.int64)
    for start in range(0, len(used), _CHUNK):
        part = slice(start, start + _CHUNK)
        points[part], clips[part] = _search_some(used[part], tops[part], shape, free)
    return points, clips


def _search_some(used: Array, tops: Array, shape: Shape, free: bool) -> tuple[Array, Array]:
    wanted = used[:, 1:].sum(1)
    best = _Best(used, shape)
    largest = np.full(len(used), LARGEST * _CLIP)
    first = tops * _CLIP if free else largest
    # With all levels used, the breakpoint is one of them; else it may be anywhere.
    rank = np.cumsum(used[:, 1:], 1)
    known = ((rank < shape.center).sum(1) + 1) * _BREAKPOINT
    full = np.flatnonzero(wanted == shape.side)
    best.improve(full, known[full], _NEAR, first[full])
    everywhere = np.arange(0, LARGEST * _BREAKPOINT, _BREAKPOINT // 4)
    # The clip may be one that rounds to the largest level, or none of this sign reaches it.
    choices = [first + shift for shift in (0, -4, 4)] + [largest] if free else [first]
    finer = sorted(range(-_CLIP // 2 + 1, _CLIP // 2), key=abs) if free else [0]
    for points in (np.zeros(0, np.int64), everywhere):
        for clips in choices if len(points) else ():
            lacking = np.flatnonzero(best.scores < wanted)
            best.improve(lacking, 0 * lacking, points, clips[lacking])
        start = best.points.copy(), best.clips.copy()
        for shift in finer:
            lacking = np.flatnonzero(best.scores < wanted)
            near, clips = (values[lacking] for values in start)
            best.improve(lacking, near, _NEAR, clips + shift)
    return best.points, best.clips


class _Best:
    """The best candidate of each channel so far.

    Args:
        used: (channels, 128) bool.
        shape: The pieces.
    """

    def __init__(self, used: Array, shape: Shape) -> None:
        self.used, self.shape = used, shape
        self.scores = np.full(len(used), -1)
        self.points = np.zeros(len(used), np.int64)
        self.clips = np.full(len(used), LARGEST * _CLIP)

    def improve(self, rows: Array, start: Array, points: Array, clips: Array) -> None:
        """Try breakpoints ``start + points``, with one clip for each row."""
        if not len(rows):
            return
        p = np.clip(start[:, None] + points, 0, LARGEST * _BREAKPOINT)
        m = np.clip(clips, 0, LARGEST * _CLIP)
        scores = _given(self.used[rows], p, m, self.shape)
        which = scores.argmax(1)
        top = scores[np.arange(len(rows)), which]
        better = top > self.scores[rows]
        changed = rows[better]
        self.scores[changed] = top[better]
        self.points[changed] = p[better, which[better]]
        self.clips[changed] = m[better]


def _given(used: Array, points: Array, clips: Array, shape: Shape) -> Array:
    """(channels, candidates): how many of the levels used the candidates give."""
    of_breakpoint, of_clip = shape.fractions
    p = (points / _BREAKPOINT).astype(np.float32)
    m = (clips / _CLIP).astype(np.float32)[:, None]
    flat, first = used.reshape(-1), (np.arange(len(used), dtype=np.int32) * used.shape[1])[:, None]
    total = np.zeros(points.shape, np.int32)
    before = np.zeros(points.shape, np.int32)
    for a, b in zip(of_breakpoint, of_clip, strict=True):
        exact = p * a + m * b
        levels = np.rint(exact)
        index = levels.astype(np.int32)
        hit = flat[first + index] & (index != before)
        hit &= np.abs(exact - levels) < np.float32(0.5 - _MARGIN)
        total += hit
        before = index
    return total
