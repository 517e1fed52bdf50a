"""Progress of a zoo: one bar for all and one for each running model; lines where no terminal is."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from zaq_timm.zoo.errors import DONE
from zaq_timm.zoo.pool import Event


class ZooProgress:
    """Shows how far a run is, on standard error.

    Where standard error is no terminal, each model gets one line when it ends, and the run one at
    its end.

    Args:
        total: models of the run.
        done: how many were there before.
        quiet: show nothing.
        console: where to; standard error by default.
    """

    def __init__(
        self, total: int, done: int, quiet: bool = False, console: Console | None = None
    ) -> None:
        self.total, self.done, self.quiet = total, done, quiet
        self.console = console or Console(stderr=True)
        self._bars: Progress | None = None
        self._zoo: TaskID | None = None
        self._models: dict[str, TaskID] = {}
        self._ended = 0
        self._begun = time.monotonic()

    def __enter__(self) -> ZooProgress:
        if not self.quiet and self.console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description:<28}"),
                BarColumn(bar_width=28),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[stage]}"),
                console=self.console,
                transient=True,
            )
            self._bars.start()
            self._zoo = self._bars.add_task("zoo", total=self.total, completed=self.done, stage="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
        if not self.quiet and kind is None:
            seconds = time.monotonic() - self._begun
            self._line(
                f"{self._ended} model(s) in {seconds:.1f} s, {self.done} of {self.total} in all"
            )

    def on_event(self, event: Event) -> None:
        """What a worker told."""
        if self._bars is None:
            return
        name = self._models.get(event.key)
        if name is None:
            name = self._bars.add_task(f"  {event.key}", total=None, stage="starting")
            self._models[event.key] = name
        total = event.steps or None
        self._bars.update(name, total=total, completed=event.step, stage=event.stage)

    def on_row(self, row: dict[str, Any]) -> None:
        """A model that has ended."""
        self._ended += 1
        self.done += 1
        if self.quiet:
            return
        if self._bars is not None:
            bar = self._models.pop(row["key"], None)
            if bar is not None:
                self._bars.remove_task(bar)
            assert self._zoo is not None
            self._bars.update(self._zoo, completed=self.done)
            if row["status"] == DONE:
                return
        self._line(row_line(row))

    def _line(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)


def row_line(row: dict[str, Any]) -> str:
    """One model in one line."""
    seconds = row.get("measured", {}).get("seconds")
    took = f" ({seconds:.0f} s)" if isinstance(seconds, int | float) else ""
    if row["status"] != DONE:
        return f"{row['key']}: {row['status']}: {row['reason']}{took}"
    parts = [f"{row['host']}"] if row.get("host") else []
    if row.get("layers"):
        parts.append(f"{row['quantized']} of {row['layers']} layers")
    if row.get("mac_bits"):
        parts.append(f"{row['mac_bits']:.3g} MAC / {row['stored_bits']:.3g} stored bits")
    if row.get("top1") is not None:
        of = f" of {row['eval_images']} images" if row.get("eval_images") else ""
        parts.append(f"top-1 {row['top1']:.2f} %{of} (float {row['float_top1']:.2f} %)")
    elif row.get("agreement") is not None:
        count = row.get("agreement_images")
        of = f" of {count} synthetic images" if count else ""
        parts.append(f"agreement {row['agreement']:.1f} %{of}")
    return f"{row['key']}: done{': ' if parts else ''}{', '.join(parts)}{took}"
