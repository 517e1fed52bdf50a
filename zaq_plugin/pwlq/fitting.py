"""Which breakpoints and clips give the very integers of a weight: a search, channel by channel."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np

from zaq_plugin.pwlq.curves import (
    BREAKPOINT,
    CLIP,
    LARGEST,
    MARGIN,
    SHAPES,
    Array,
    Curve,
    Shape,
    books,
)

_SHARE = 0.1
"""Of channels whose larger clip is not 127, from which on that is tried as a number."""

_CHUNK = 512
_BLOCK = 2**15
"""Candidates that are tried at once: they stay in a processor's cache."""

_TIE = np.float32(0.5 - MARGIN)
_NEAR = np.concatenate([np.arange(-17, 18), np.arange(18, 36, 2), np.arange(-34, -17, 2)])
"""Steps around a breakpoint that is known to about one integer."""


def fit(used: Array, count: int) -> Curve | None:
    """The curve with which codes and codebooks are smallest; None if there is none.

    Args:
        used: (channels, 256) bool, which of the integers from -128 each channel uses.
        count: Weights a channel.
    """
    if used[:, 0].any():
        return None
    levels, best, size = int(used.sum(1).max(initial=0)), None, math.inf
    below = (_tops(_sides(used)).max(0) < LARGEST).mean() > _SHARE
    for shape in (*SHAPES, *(replace(shape, scaled=True) for shape in SHAPES if below)):
        codes = len(used) * count * shape.width / 8
        if 2 * shape.side + 1 < levels or codes + len(used) * shape.nibbles / 2 >= size:
            continue
        curve = _fit(used, shape)
        if curve is not None and codes + curve.bytes < size:
            best, size = curve, codes + curve.bytes
    return best


def _sides(used: Array) -> list[Array]:
    """(channels, 128) for each sign: which magnitudes a channel uses."""
    return [used[:, 128:], used[:, :129][:, ::-1][:, :128]]


def _tops(sides: list[Array]) -> Array:
    """(2, channels): the largest magnitude of each sign."""
    return np.stack([np.where(s.any(1), 127 - s[:, ::-1].argmax(1), 0) for s in sides])


def _fit(used: Array, shape: Shape) -> Curve | None:
    channels = len(used)
    sides = [side.copy() for side in _sides(used)]
    tops = _tops(sides)
    largest = tops.max(0) if shape.scaled else np.full(channels, LARGEST)
    smaller = (tops[1] <= tops[0]).astype(int)
    values = np.zeros((channels, 4), np.int64)
    values[:, 2], values[:, 3] = 2048, largest
    for sign in (0, 1):
        for free in (False, True):
            rows = np.flatnonzero((smaller == sign) == free)
            if not len(rows):
                continue
            ends = tops[sign][rows], largest[rows]
            breakpoint_, clip = _search(sides[sign][rows], *ends, shape, free)
            values[rows, sign] = breakpoint_
            if free:
                less = largest[rows] * CLIP - clip
                values[rows, 2] = 2048 + less if sign == 0 else 2048 - less
    digits = values[:, :, None] >> (4 * np.arange(3)) & 15
    nibbles = digits.reshape(channels, 12).astype(np.uint8)[:, : shape.nibbles]
    return _patched(used, nibbles, shape)


def _patched(used: Array, nibbles: Array, shape: Shape) -> Curve | None:
    """Put levels that are used but not given where an entry is not needed."""
    book = books(nibbles, shape)
    channels = np.arange(len(used))[:, None]
    available = np.zeros_like(used)
    available[channels, book.astype(np.int64) + 128] = True
    lacking = used & ~available
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


def _search(
    used: Array, tops: Array, largest: Array, shape: Shape, free: bool
) -> tuple[Array, Array]:
    """Breakpoints and clips, in their steps, that give as many of one side's levels as possible.

    Args:
        used: (channels, 128) bool.
        tops: (channels,) the largest level used.
        largest: (channels,) the channel's larger clip.
        shape: The pieces.
        free: Search the clip, too; else it is the larger.
    """
    points, clips = np.zeros(len(used), np.int64), np.zeros(len(used), np.int64)
    for start in range(0, len(used), _CHUNK):
        part = slice(start, start + _CHUNK)
        pair = _search_some(used[part], tops[part], largest[part], shape, free)
        points[part], clips[part] = pair
    return points, clips


def _search_some(
    used: Array, tops: Array, largest: Array, shape: Shape, free: bool
) -> tuple[Array, Array]:
    counts = used[:, 1:].sum(1)
    best = _Best(used, largest, shape)
    largest = largest * CLIP
    first = tops * CLIP if free else largest
    # With all levels used, the breakpoint is one of them; else it may be anywhere.
    rank = np.cumsum(used[:, 1:], 1)
    breakpoints = ((rank < shape.center).sum(1) + 1) * BREAKPOINT
    full = np.flatnonzero(counts == shape.side)
    best.improve(full, breakpoints[full], _NEAR, first[full])
    everywhere = np.arange(0, LARGEST * BREAKPOINT, BREAKPOINT // 4)
    # The clip may be one that rounds to the largest level, or none of this sign reaches it.
    choices = [first + shift for shift in (0, -4, 4)] + [largest] if free else [first]
    finer = sorted(range(-CLIP // 2 + 1, CLIP // 2), key=abs) if free else [0]
    for points in (np.zeros(0, np.int64), everywhere):
        for clips in choices if len(points) else ():
            lacking = np.flatnonzero(best.scores < counts)
            best.improve(lacking, 0 * lacking, points, clips[lacking])
        start = best.points.copy(), best.clips.copy()
        for shift in finer:
            lacking = np.flatnonzero(best.scores < counts)
            near, clips = (values[lacking] for values in start)
            best.improve(lacking, near, _NEAR, clips + shift)
    return best.points, best.clips


class _Best:
    """The best candidate of each channel so far.

    Args:
        used: (channels, 128) bool.
        largest: (channels,) the larger clip.
        shape: The pieces.
    """

    def __init__(self, used: Array, largest: Array, shape: Shape) -> None:
        self.used, self.largest, self.shape = used, largest, shape
        self.scores = np.full(len(used), -1)
        self.points = np.zeros(len(used), np.int64)
        self.clips = largest * CLIP

    def improve(self, rows: Array, start: Array, points: Array, clips: Array) -> None:
        """Try breakpoints ``start + points``, with one clip for each row."""
        if not len(rows):
            return
        largest = self.largest[rows]
        p = np.clip(start[:, None] + points, 0, largest[:, None] * BREAKPOINT)
        m = np.clip(clips, 0, largest * CLIP)
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
    totals = np.empty(points.shape, np.int32)
    words = np.packbits(used, axis=1, bitorder="little").view("<u8")
    rows = max(1, _BLOCK // points.shape[1])
    for start in range(0, len(used), rows):
        part = slice(start, start + rows)
        totals[part] = _given_some(used[part], words[part], points[part], clips[part], shape)
    return totals


def _given_some(used: Array, words: Array, points: Array, clips: Array, shape: Shape) -> Array:
    """The same of some channels; ``words`` are the levels used as bits, (channels, 2)."""
    inner, before = (table.take(points, -1) for table in _center(shape))
    total = _ones(inner & words.T[:, :, None])
    p = (points / BREAKPOINT).astype(np.float32)
    m = (clips / CLIP).astype(np.float32)[:, None]
    flat, first = used.reshape(-1), (np.arange(len(used), dtype=np.int32) * used.shape[1])[:, None]
    levels = np.empty_like(p)
    for a, b in shape.fractions.T[shape.center :]:
        exact = p * a
        exact += m * b
        np.rint(exact, out=levels)
        index = levels.astype(np.int32)
        exact -= levels
        hit = flat.take(first + index)
        hit &= index != before
        hit &= np.abs(exact, out=exact) < _TIE
        total += hit
        before = index
    return total


@cache
def _center(shape: Shape) -> tuple[Array, Array]:
    """What a center gives, by its breakpoint in steps: no clip has a part in it.

    Returns:
        (2, breakpoints) levels from 0 and from 64, a bit each; (breakpoints,) the last level.
    """
    p = (np.arange(LARGEST * BREAKPOINT + 1) / BREAKPOINT).astype(np.float32)
    bits, before = np.zeros((2, len(p)), np.uint64), np.zeros(len(p), np.int32)
    for fraction in shape.fractions[0, : shape.center]:
        exact = p * fraction
        levels = np.rint(exact)
        index = levels.astype(np.int32)
        given = (index != before) & (np.abs(exact - levels) < _TIE)
        bit = given.astype(np.uint64) << (index % 64).astype(np.uint64)
        bits |= np.where(np.stack([index < 64, index >= 64]), bit, np.uint64(0))
        before = index
    return bits, before


def _ones(words: Array) -> Array:
    """How many bits of two words are set together: (2, ...) uint64 to (...) int32.

    Numpy has an operator for it from 2.0 on.
    """
    pairs, fours = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333)
    words = words - (words >> np.uint64(1) & pairs)
    words = (words & fours) + (words >> np.uint64(2) & fours)
    both = words[0] + words[1]  # up to 8 in four bits
    nibbles = np.uint64(0x0F0F0F0F0F0F0F0F)
    both = (both & nibbles) + (both >> np.uint64(4) & nibbles)
    return (both * np.uint64(0x0101010101010101) >> np.uint64(56)).astype(np.int32)
