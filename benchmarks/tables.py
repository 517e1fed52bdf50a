"""One writer of tables: Markdown lines, and numbers over seeds as a mean with its spread."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

RULES = {"l": "---", "r": "---:"}


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], align: str = "lr") -> list[str]:
    """The lines of a Markdown table.

    Args:
        heads: Titles of the columns.
        rows: Cells of the lines, as text.
        align: A letter a column, ``l`` or ``r``; the last one holds for the columns behind it.

    Raises:
        ValueError: a line has another number of cells than there are columns.
    """
    letters = align.ljust(len(heads), align[-1])
    lines = [_line(heads), "|" + "|".join(RULES[letter] for letter in letters[: len(heads)]) + "|"]
    for row in rows:
        if len(row) != len(heads):
            raise ValueError(f"{len(row)} cells for the {len(heads)} columns {list(heads)}: {row}")
        lines.append(_line(row))
    return lines


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def mean_and_spread(values: Sequence[float], digits: int = 2) -> str:
    """``mean (lowest to highest)``, or the only value, or a dash."""
    if not values:
        return "–"
    return spread(statistics.fmean(values), values, f".{digits}f")


def median_and_spread(values: Sequence[float], form: str = ".3g") -> str:
    """``median (lowest to highest)``, or the only value."""
    return spread(statistics.median(values), values, form)


def spread(middle: float, values: Sequence[float], form: str) -> str:
    """``middle (lowest to highest)``; the middle alone where there is one value."""
    if len(values) == 1:
        return f"{middle:{form}}"
    return f"{middle:{form}} ({min(values):{form}} to {max(values):{form}})"
