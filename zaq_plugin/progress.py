"""Progress on standard error: a bar in a terminal, lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class RunProgress:
    """Shows the stage, the steps, the latest terms and the time left.

    Args:
        active: False shows nothing at all.
        console: Where to; standard error by default. When it is no terminal, one line is printed
            per stage, at its end.
    """

    def __init__(self, active: bool = True, console: Console | None = None) -> None:
        self.active = active
        self.console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._since = time.monotonic()
        self._latest = ""

    def __enter__(self) -> RunProgress:
        if self.active and self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TextColumn("{task.fields[terms]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._finish()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def show(
        self, stage: str, done: int, total: int, terms: Mapping[str, float] | None = None
    ) -> None:
        """One step of a stage; a new stage name ends the one before."""
        if not self.active:
            return
        if stage != self._stage:
            self._finish()
            self._stage, self._since = stage, time.monotonic()
            if self._bar is not None:
                self._task = self._bar.add_task(stage, total=total, terms="")
        if terms:
            self._latest = "  ".join(f"{name} {value:.4g}" for name, value in terms.items())
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, terms=self._latest)
        self._done, self._total = done, total

    def _finish(self) -> None:
        if self._stage and self.active and self._bar is None:
            seconds = time.monotonic() - self._since
            line = f"{self._stage}: {self._done}/{self._total} in {seconds:.0f} s  {self._latest}"
            self.console.print(line.rstrip(), highlight=False, soft_wrap=True)
        self._stage, self._latest = "", ""
