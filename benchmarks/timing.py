"""One way to take times: calls take turns, so that a busy machine slows all alike; medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Times(NamedTuple):
    """Medians in seconds: of the processor, all threads together, and on the clock.

    Others on the machine lengthen the processor's time less than time on the clock.
    """

    processor: float
    wall: float


def alternating(
    calls: Mapping[str, Callable[[], object]], repeats: int, warm: int = 1
) -> dict[str, Times]:
    """Each call's times.

    Args:
        calls: By name; in each round every one is called once.
        repeats: Rounds that count.
        warm: Rounds before them, which do not.
    """
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for turn in range(warm + repeats):
        for name, call in calls.items():
            begin, processor = time.perf_counter(), time.process_time()
            call()
            used = time.process_time() - processor
            if turn >= warm:
                spent[name].append((used, time.perf_counter() - begin))
    return {
        name: Times(*(statistics.median(column) for column in zip(*values, strict=True)))
        for name, values in spent.items()
    }
