"""Calls take turns, and first rounds do not count."""

import time
from collections.abc import Callable

from benchmarks.timing import alternating


def test_calls_take_turns() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    by_name = alternating(calls, 2)
    assert order == list("ababab")
    assert set(by_name) == {"a", "b"}
    assert all(times.processor >= 0 and times.wall > 0 for times in by_name.values())


def test_the_first_round_does_not_count() -> None:
    order: list[str] = []

    def call(name: str, first: float) -> Callable[[], None]:
        def run() -> None:
            if name not in order:
                time.sleep(first)
            order.append(name)

        return run

    times = alternating({"a": call("a", 0.2), "b": call("b", 0.0)}, repeats=3)
    assert order == ["a", "b"] * 4
    assert times["a"].wall < 0.1


def test_every_round_counts_where_none_warms_up() -> None:
    calls: list[int] = []
    alternating({"a": lambda: calls.append(1)}, 2, warm=0)
    assert len(calls) == 2
