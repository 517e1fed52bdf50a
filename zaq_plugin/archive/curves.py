"""PWLQ's curves in an archive: their numbers as parts, their levels as tables for bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zaq_plugin.archive.layout import numbers
from zaq_plugin.pwlq.curves import Shape, books

LEAST = 32
"""Weights a channel from which on a curve can pay."""

_LARGEST_SIDE = 63


def shape_numbers(shape: Shape) -> list[int]:
    """A shape in the description."""
    return [shape.center, shape.tail, int(shape.scaled)]


def shape_of(entry: Any) -> Shape:
    """Undo `shape_numbers`.

    Raises:
        ValueError: It is none.
    """
    center, tail, scaled = numbers(entry, 3)
    if not 0 < center + tail <= _LARGEST_SIDE or not center or not tail or scaled > 1:
        raise ValueError("its description has levels that no curve has")
    return Shape(center, tail, bool(scaled))


def split_numbers(nibbles: NDArray[np.uint8]) -> list[bytes]:
    """(channels, n) of four bits as parts: each number's upper eight bits, then its lower four.

    The upper bits of a number are much the same in all channels, the lower ones are not.
    """
    parts = []
    for start in range(0, 9, 3):
        low, middle, high = nibbles[:, start : start + 3].T
        parts += [(high << 4 | middle).tobytes(), low.tobytes()]
    if nibbles.shape[1] > 9:
        low, high = nibbles[:, 9:].T
        parts.append((high << 4 | low).tobytes())
    return parts


def part_count(shape: Shape) -> int:
    """How many parts `split_numbers` makes."""
    return 7 if shape.scaled else 6


def joined_numbers(parts: list[bytes], shape: Shape) -> NDArray[np.uint8]:
    """Undo `split_numbers`."""
    columns = [np.frombuffer(part, np.uint8) for part in parts]
    nibbles = []
    for upper, low in zip(columns[0:6:2], columns[1:6:2], strict=True):
        nibbles += [low & 15, upper & 15, upper >> 4]
    if shape.scaled:
        nibbles += [columns[6] & 15, columns[6] >> 4]
    return np.stack(nibbles, 1)


def tables(
    nibbles: NDArray[np.uint8], exceptions: NDArray[np.int32], shape: Shape
) -> Iterator[bytes]:
    """For each channel 256 bytes: the level, as a byte, of every code.

    Args:
        nibbles: (channels, `Shape.nibbles`).
        exceptions: (3, count) channel, code and level of what the numbers do not give.
        shape: The pieces.

    Raises:
        ValueError: An exception is of no channel, or of no code.
    """
    codebooks = books(nibbles, shape)
    channel, code, level = exceptions
    if channel.size and (
        min(channel.min(), code.min()) < 0
        or channel.max() >= len(codebooks)
        or code.max() >= codebooks.shape[1]
        or np.abs(level).max() > 128
    ):
        raise ValueError("a level is listed where there is none")
    codebooks[channel, code] = level.astype(np.int8)
    filled = np.zeros((len(codebooks), 256), np.int8)
    filled[:, : codebooks.shape[1]] = codebooks
    whole = filled.tobytes()
    return (whole[i : i + 256] for i in range(0, len(whole), 256))
