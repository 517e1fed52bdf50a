"""Quantized tensors and numbers: which grid torch.ao gives their sum and product."""

from __future__ import annotations

TOP = 255

Grid = tuple[float, int]


def product_grid(grid: Grid, factor: float) -> Grid:
    """Grid of a quantized tensor times a number: its integers stay, or are mirrored.

    Args:
        grid: Scale and zero point of the tensor, uint8.
        factor: The number.
    """
    scale, zero = grid
    if factor == 0:
        return 1.0, 0
    return scale * abs(factor), zero if factor > 0 else TOP - zero


def sum_grid(grid: Grid, term: float) -> tuple[float, Grid]:
    """The number that is really added to a quantized tensor, and the grid of the sum.

    The number is rounded to whole steps and moves the zero point; where that leaves uint8, the grid
    becomes coarser, such that it reaches from zero to the far end.

    Args:
        grid: Scale and zero point of the tensor, uint8.
        term: The number.
    """
    scale, zero = grid
    steps = round(term / scale)
    moved = zero - steps
    if moved < 0:
        total_grid = (TOP - moved) / TOP * scale, 0
    elif moved > TOP:
        total_grid = moved / TOP * scale, TOP
    else:
        total_grid = scale, moved
    return steps * scale, total_grid
