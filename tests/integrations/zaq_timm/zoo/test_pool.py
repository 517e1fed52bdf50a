"""What a worker does to itself costs its own row, and the row says what it was."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
from zoo_fake_work import FakePlan

from zaq_timm.zoo.pool import Event, Pool, Task
from zaq_timm.zoo.worker import Limits, group_memory

linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="memory is watched through Linux's /proc"
)


def one(tmp_path: Path, function: str, limits: Limits | None = None, **more: Any) -> dict[str, Any]:
    task = FakePlan(("a",), function).task("a", tmp_path / "a")
    ((done, row),) = Pool(1, limits or Limits(), **more).run([task])
    assert (done.key, done.folder) == (task.key, task.folder)
    return row


def test_a_result_comes_back_with_time_and_memory(tmp_path: Path) -> None:
    events: list[Event] = []
    row = one(tmp_path, "digest", on_event=events.append)
    assert (row["key"], row["status"], row["reason"]) == ("a", "done", None)
    assert row["measured"]["peak_bytes"] > 1e6
    assert row["measured"]["attempts"] == 1
    assert events[0] == Event("a")
    steps = [(e.stage, e.step, e.steps) for e in events[1:]]
    assert steps == [("hashing", i, 3) for i in (1, 2, 3)][: len(steps)]


def test_what_a_library_prints_goes_to_the_log(tmp_path: Path) -> None:
    row = one(tmp_path, "talk", Limits(threads=3))
    assert row["threads"] == "3"
    log = (tmp_path / "a" / "log.txt").read_text()
    assert "a library says something" in log
    assert "and so does C" in log


def test_an_exception_is_a_reason_in_one_line_with_its_trace_in_the_log(tmp_path: Path) -> None:
    row = one(tmp_path, "fail")
    assert (row["status"], row["reason"]) == ("failed", "ValueError: this model is odd")
    assert "Traceback" in (tmp_path / "a" / "log.txt").read_text()


def test_a_model_that_cannot_be_done_is_left_out(tmp_path: Path) -> None:
    row = one(tmp_path, "leave_out")
    assert (row["status"], row["reason"]) == ("left out", "it has no weights")


def test_a_crash_costs_one_row(tmp_path: Path) -> None:
    tasks = [
        FakePlan((), f).task(k, tmp_path / k)
        for k, f in (("a", "crash"), ("b", "digest"), ("c", "digest"))
    ]
    rows = {row["key"]: row for _, row in Pool(2, Limits()).run(tasks)}
    assert rows["a"]["status"] == "failed"
    assert rows["a"]["reason"] == "crashed with SIGSEGV; see log.txt"
    assert [rows[k]["status"] for k in "bc"] == ["done", "done"]


@linux
def test_a_hang_ends_at_its_time_with_all_its_children(tmp_path: Path) -> None:
    begin = time.monotonic()
    row = one(tmp_path, "hang", Limits(seconds=1.5))
    assert (row["status"], row["reason"]) == ("timed out", "not done within 1.5 s")
    assert time.monotonic() - begin < 20
    child = int((tmp_path / "child-of-a").read_text())
    state = Path(f"/proc/{child}/stat")
    deadline = time.monotonic() + 5
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, "the worker's child lives on"
        time.sleep(0.05)


def test_batches_halve_until_memory_is_enough(tmp_path: Path) -> None:
    row = one(tmp_path, "too_much")
    assert (row["status"], row["batch"]) == ("done", 2)
    assert row["batch_halved_from"] == 8
    assert row["measured"]["attempts"] == 3


@linux
def test_a_worker_over_its_memory_is_ended_and_tried_with_half_the_batch(tmp_path: Path) -> None:
    row = one(tmp_path, "eat", Limits(memory=450 * 10**6))
    assert (row["status"], row["batch"]) == ("done", 4)
    assert row["batch_halved_from"] == 8


@linux
def test_memory_that_no_batch_fits_in_is_a_reason(tmp_path: Path) -> None:
    row = one(tmp_path, "eat", Limits(memory=100 * 10**6))
    assert row["status"] == "out of memory"
    assert row["batch_halved_from"] == 8


def test_two_at_a_time_are_two_at_a_time(tmp_path: Path) -> None:
    running: list[set[str]] = []
    now: set[str] = set()

    def watch(event: Event) -> None:
        if not event.stage:
            now.add(event.key)
            running.append(set(now))

    tasks = [FakePlan(()).task(k, tmp_path / k) for k in "abcde"]
    for task, _ in Pool(2, Limits(), watch).run(tasks):
        now.discard(task.key)
    assert max(map(len, running)) == 2


def test_workers_are_gone_when_the_caller_stops(tmp_path: Path) -> None:
    tasks = [FakePlan((), f).task(k, tmp_path / k) for k, f in (("a", "digest"), ("b", "hang"))]
    rows = Pool(2, Limits()).run(tasks)
    task: Task = next(rows)[0]
    assert task.key == "a"
    rows.close()
    if sys.platform.startswith("linux") and (tmp_path / "child-of-b").exists():
        child = int((tmp_path / "child-of-b").read_text())
        deadline = time.monotonic() + 5
        while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
            if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                break
            time.sleep(0.05)
        else:
            assert not Path(f"/proc/{child}").exists()


@linux
def test_a_groups_memory_is_known() -> None:
    import os

    assert (group_memory(os.getpgid(0)) or 0) > 1e6
    assert group_memory(2**22 + 1) is None
