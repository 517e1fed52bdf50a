"""Runs jobs in processes of their own, so many at a time; whatever one does costs its row alone.

supervisor                     worker, its own process group
  job.json  ----------------->  does the work, limits on itself
  limits, deadline, progress <- progress lines
  row.json <------------------  written whole, last of all
"""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zaq_timm.zoo.errors import FAILED, KILLED, OUT_OF_MEMORY, TIMED_OUT
from zaq_timm.zoo.light import cannot_write, write_json
from zaq_timm.zoo.worker import DISK_FULL, JOB, ROW, Limits, end_group, group_memory

LOG = "log.txt"
_LOOK = 0.1
_LOOK_AT_MEMORY = 0.5
_GIGABYTE = 1e9


@dataclass(frozen=True)
class Task:
    """One job.

    Attributes:
        key: the row's name.
        work: ``package.module:function``, see `zaq_timm.zoo.worker`.
        payload: what the function gets, plain JSON values; ``batch`` in it halves when memory ends.
        folder: where the worker writes; it exists and is empty.
        ranks: processes that share the job, by torchrun.
    """

    key: str
    work: str
    payload: dict[str, Any]
    folder: Path
    ranks: int = 1


@dataclass(frozen=True)
class Event:
    """What a worker tells while it runs; ``stage`` is empty when it starts."""

    key: str
    stage: str = ""
    step: int = 0
    steps: int = 0


@dataclass
class _Running:
    task: Task
    process: subprocess.Popen[bytes]
    begun: float
    attempts: int
    halved_from: int | None
    peak: int = 0
    over: str = ""
    looked: float = field(default_factory=time.monotonic)


class Pool:
    """Keeps `jobs` workers busy.

    Args:
        jobs: workers at a time.
        limits: of each.
        on_event: told of every start and step.
    """

    def __init__(
        self, jobs: int, limits: Limits, on_event: Callable[[Event], None] = lambda _: None
    ) -> None:
        self.jobs, self.limits, self.on_event = jobs, limits, on_event
        self._running: dict[int, _Running] = {}
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, dict[str, Any]]]:
        """Yields each task with its row, in the order in which they end.

        When the caller stops iterating, or an exception passes, all workers are killed.

        Raises:
            RunError: the disk is full, or the folder went away.
        """
        coming = iter(tasks)
        try:
            more = True
            while more or self._running:
                while more and len(self._running) < self.jobs:
                    task = next(coming, None)
                    more = task is not None
                    if task is not None:
                        self._start(task, time.monotonic(), 1, None)
                if not self._running:
                    break
                self._pass_on_events()
                for ended in [r for r in self._running.values() if self._look(r)]:
                    del self._running[ended.process.pid]
                    row = self._row(ended)
                    if self._again(ended, row):
                        continue
                    yield ended.task, row
        finally:
            for running in self._running.values():
                end_group(running.process.pid)
                running.process.wait()
            self._running.clear()

    def _start(self, task: Task, begun: float, attempts: int, halved: int | None) -> None:
        job = {
            "work": task.work,
            "payload": task.payload,
            "path": [p for p in sys.path if p] + [str(Path.cwd())],
            "threads": self.limits.threads,
            "memory": self.limits.memory,
        }
        command = [sys.executable, "-m"]
        if task.ranks > 1:
            command += ["torch.distributed.run", "--standalone", f"--nproc-per-node={task.ranks}"]
            command += ["-m"]
        command += ["zaq_timm.zoo.worker", str(task.folder)]
        try:
            task.folder.mkdir(parents=True, exist_ok=True)
            (task.folder / ROW).unlink(missing_ok=True)
            write_json(task.folder / JOB, job)
            with (task.folder / LOG).open("ab") as log:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=self.limits.environment(),
                    start_new_session=True,
                )
        except OSError as error:
            raise cannot_write(task.folder, error) from error
        running = _Running(task, process, begun, attempts, halved)
        self._running[process.pid] = running
        threading.Thread(target=self._listen, args=(running,), daemon=True).start()
        self.on_event(Event(task.key))

    def _listen(self, running: _Running) -> None:
        assert running.process.stdout is not None
        for line in running.process.stdout:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                message = json.loads(line)
                self._events.put(
                    Event(running.task.key, message["stage"], message["step"], message["steps"])
                )

    def _pass_on_events(self) -> None:
        """Hands on what workers told; waits a moment for the first word."""
        with contextlib.suppress(queue.Empty):
            self.on_event(self._events.get(timeout=_LOOK))
            while True:
                self.on_event(self._events.get_nowait())

    def _look(self, running: _Running) -> bool:
        """Whether a worker has ended; ends one that is over its limits."""
        if running.process.poll() is not None:
            end_group(running.process.pid)  # children that it may have left
            return True
        now = time.monotonic()
        limit = self.limits
        if limit.seconds is not None and now - running.begun > limit.seconds and not running.over:
            running.over = TIMED_OUT
            end_group(running.process.pid)
        if now - running.looked >= _LOOK_AT_MEMORY:
            running.looked = now
            used = group_memory(running.process.pid) or 0
            running.peak = max(running.peak, used)
            if limit.memory is not None and used > limit.memory and not running.over:
                running.over = OUT_OF_MEMORY
                end_group(running.process.pid)
        return False

    def _row(self, ended: _Running) -> dict[str, Any]:
        """The worker's row, or one that says how it ended."""
        task, code = ended.task, ended.process.returncode
        for stream in (ended.process.stdin, ended.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        try:
            row: dict[str, Any] = json.loads((task.folder / ROW).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            row = self._obituary(ended, code)
        if code == DISK_FULL:
            raise cannot_write(task.folder / ROW, OSError(28, "No space left on device"))
        measured = row.setdefault("measured", {})
        peak = max(measured.get("peak_bytes") or 0, ended.peak)
        measured["peak_bytes"] = peak or None
        measured["attempts"] = ended.attempts
        measured.setdefault("seconds", round(time.monotonic() - ended.begun, 3))
        if ended.halved_from is not None:
            row["batch_halved_from"] = ended.halved_from
        return {"key": task.key, **row}

    def _obituary(self, ended: _Running, code: int) -> dict[str, Any]:
        limit = self.limits
        if ended.over == TIMED_OUT:
            return {"status": TIMED_OUT, "reason": f"not done within {limit.seconds:g} s"}
        if ended.over == OUT_OF_MEMORY:
            assert limit.memory is not None
            used = f"{ended.peak / _GIGABYTE:.2f} GB of {limit.memory / _GIGABYTE:.2f} GB"
            return {"status": OUT_OF_MEMORY, "reason": f"took {used} that it may take"}
        if code == -signal.SIGKILL:
            reason = "killed from outside (signal 9): by hand, or by the system out of memory"
            return {"status": KILLED, "reason": reason}
        if code < 0:
            name = signal.Signals(-code).name
            return {"status": FAILED, "reason": f"crashed with {name}; see {LOG}"}
        return {"status": FAILED, "reason": f"ended with code {code} and no result; see {LOG}"}

    def _again(self, ended: _Running, row: dict[str, Any]) -> bool:
        """Starts a task anew: with half the batch when memory ended, else once if killed."""
        task = ended.task
        batch = task.payload.get("batch")
        if row["status"] == OUT_OF_MEMORY and isinstance(batch, int) and batch > 2:
            smaller = replace(task, payload={**task.payload, "batch": max(2, batch // 2)})
            first = batch if ended.halved_from is None else ended.halved_from
            self._start(smaller, ended.begun, ended.attempts + 1, first)
            return True
        if row["status"] == KILLED and ended.attempts == 1:
            self._start(task, ended.begun, 2, ended.halved_from)
            return True
        return False
