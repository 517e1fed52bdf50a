"""Ranges of a chart's axes, and round values on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """The range of an axis; with ``log`` equal lengths are equal ratios."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def over(cls, values: Sequence[float], margin: float = 0.06) -> Scale:
        """The values' range, and a margin as a share of it on both sides."""
        low, high = min(values), max(values)
        room = margin * (high - low) or 0.5
        return cls(low - room, high + room)

    def share(self, value: float) -> float:
        """Where a value lies, 0 to 1."""
        ends = (self.low, self.high, value)
        low, high, at = (math.log10(v) for v in ends) if self.log else ends
        return (at - low) / max(high - low, 1e-300)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """A few round values, and how they are written."""
        values = log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high)
        return [(v, f"{v:g}".replace("-", "−")) for v in values]


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers within a range."""
    raw = max(high - low, 1e-9) / 5
    unit = 10 ** math.floor(math.log10(raw))
    step = unit * next((m for m in (1, 2, 5, 10) if unit * m >= raw), 10)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within a range; finer steps where those are too few.

    Over many powers these alone, every so many.
    """
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if last - first > 3:
        return [10.0**p for p in range(first, last + 1, -(-(last - first) // 5))]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values: list[float] = []
    for steps in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), tuple(range(10, 100))):
        values = [m * 10.0 ** (p - (len(steps) > 9)) for p in powers for m in steps]
        values = [v for v in values if low <= v <= high]
        if len(values) >= 3:
            break
    return values[:: max(1, -(-len(values) // 9))]
