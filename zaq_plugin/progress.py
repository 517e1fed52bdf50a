"""Progress on standard error: bars in a terminal, lines anywhere else. Loads rich alone."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)


class Bars:
    """Bars, which lines may be said above; a context manager.

    Args:
        columns: What stands in each.
        console: Where to; standard error by default.
        active: False shows nothing at all.
        transient: Whether bars go away at the end.

    Attributes:
        live: Whether there are bars: the console is a terminal.
    """

    def __init__(
        self,
        *columns: ProgressColumn,
        console: Console | None = None,
        active: bool = True,
        transient: bool = True,
    ) -> None:
        self.active, self.console = active, console or Console(stderr=True)
        self.live = active and self.console.is_terminal
        self._bars = Progress(*columns, console=self.console, transient=transient)

    def __enter__(self) -> Self:
        if self.live:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        if self.live:
            self._bars.stop()

    def add(self, description: str, total: float | None, done: int = 0, **words: Any) -> TaskID:
        """A further bar."""
        return self._bars.add_task(description, total=total, completed=done, **words)

    def update(self, bar: TaskID, **values: Any) -> None:
        """Move a bar: ``completed``, ``total``, ``description``, or words of its columns."""
        self._bars.update(bar, **values)

    def remove(self, bar: TaskID) -> None:
        """Take a bar away."""
        self._bars.remove_task(bar)

    def say(self, text: str) -> None:
        """A line, above the bars if there are any."""
        if self.active:
            self.console.print(text, highlight=False, soft_wrap=True, markup=False)


class RunProgress(Bars):
    """Shows the stage, the steps, the latest terms and the time left.

    Args:
        active: False shows nothing at all.
        console: Where to; standard error by default. When it is no terminal, one line is printed
            per stage, at its end.
    """

    def __init__(self, active: bool = True, console: Console | None = None) -> None:
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[terms]}"),
            TimeRemainingColumn(),
            console=console,
            active=active,
            transient=False,
        )
        self._bar: TaskID | None = None
        self._stage = ""
        self._since = time.monotonic()
        self._latest = ""

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        if kind is None:
            self._finish()
        super().__exit__(kind, *error)

    def show(
        self, stage: str, done: int, total: int, terms: Mapping[str, float] | None = None
    ) -> None:
        """One step of a stage; a new stage name ends the one before."""
        if not self.active:
            return
        if stage != self._stage:
            self._finish()
            self._stage, self._since = stage, time.monotonic()
            self._bar = self.add(stage, total, terms="")
        if terms:
            self._latest = "  ".join(f"{name} {value:.4g}" for name, value in terms.items())
        assert self._bar is not None
        self.update(self._bar, completed=done, total=total, terms=self._latest)
        self._done, self._total = done, total

    def _finish(self) -> None:
        if self._stage and not self.live:
            seconds = time.monotonic() - self._since
            line = f"{self._stage}: {self._done}/{self._total} in {seconds:.0f} s  {self._latest}"
            self.say(line.rstrip())
        self._stage, self._latest = "", ""
