"""Any tensor, any axis, any memory format, seen as rows of one channel each."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def channels_of(w: Tensor, axis: int | None) -> int:
    """Number of channels along a normalised axis; 1 per tensor."""
    return 1 if axis is None else w.shape[axis]


def to_rows(w: Tensor, axis: int | None) -> Tensor:
    """w as (channels, elements): a view where the layout allows, else a copy."""
    if axis is None:
        return w.reshape(1, -1)
    return w.movedim(axis, 0).reshape(w.shape[axis], -1)


def from_rows(rows: Tensor, like: Tensor, axis: int | None) -> Tensor:
    """Undo `to_rows`: like's shape and memory format, rows' dtype."""
    shaped = from_rows_shape(rows, tuple(like.shape), axis)
    out = torch.empty_like(like, dtype=rows.dtype)
    return shaped if shaped.stride() == out.stride() else out.copy_(shaped)


def from_rows_shape(rows: Tensor, shape: tuple[int, ...], axis: int | None) -> Tensor:
    """Rows back in a tensor of the given shape (contiguous if rows are and axis is 0)."""
    if axis is None:
        return rows.reshape(shape)
    moved = (shape[axis], *(s for i, s in enumerate(shape) if i != axis))
    return rows.reshape(moved).movedim(0, axis)


def blocks(rows: Tensor, elements: int) -> Iterator[tuple[slice, slice]]:
    """Slices that cut (channels, elements) into pieces that stay in cache.

    Whole rows where they are short, parts of single rows where they are long. Elementwise work
    gives the same result for any cut.
    """
    channels, length = rows.shape
    if length >= elements:
        for channel in range(channels):
            for start in range(0, length, elements):
                yield slice(channel, channel + 1), slice(start, start + elements)
        return
    step = max(1, elements // length)
    for start in range(0, channels, step):
        yield slice(start, start + step), slice(0, length)
