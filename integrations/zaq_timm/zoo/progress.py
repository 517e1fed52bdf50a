"""Progress of the commands: bars in a terminal, lines anywhere else; torch is not loaded for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

from zaq_timm.zoo.errors import DONE
from zaq_timm.zoo.light import core_file
from zaq_timm.zoo.pool import Event

if TYPE_CHECKING:
    from zaq_plugin.progress import Bars
else:
    Bars = core_file("progress").Bars


@contextmanager
def progress(
    total: int, done: str, console: Console | None = None
) -> Iterator[Callable[[str], None]]:
    """Shows how far a job of `total` steps has come.

    Yields a function to call when a step begins, with its description; each call but the first
    counts the step before it as done.

    Args:
        total: the number of steps.
        done: what to say at the end where there is no terminal; `{steps}` and `{seconds}` are
            filled in.
        console: where to show it; by default standard error.
    """
    begin, steps = time.perf_counter(), 0
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=console) as bars:
        bar = bars.add("", total)

        def begin_step(description: str) -> None:
            nonlocal steps
            bars.update(bar, description=description, completed=steps)
            steps += 1

        yield begin_step
        bars.update(bar, completed=total)
    if not bars.live:
        bars.say(done.format(steps=steps, seconds=f"{time.perf_counter() - begin:.1f}"))


class ZooProgress(Bars):
    """Shows how far a run is, on standard error: a bar for all, and one for each running model.

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
        self.total, self.done = total, done
        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[stage]}"),
        )
        super().__init__(*columns, console=console, active=not quiet)
        self._zoo = self.add("zoo", total, done, stage="")
        self._models: dict[str, Any] = {}
        self._ended = 0
        self._begun = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        super().__exit__(kind, *error)
        if kind is None:
            seconds = time.monotonic() - self._begun
            self.say(
                f"{self._ended} model(s) in {seconds:.1f} s, {self.done} of {self.total} in all"
            )

    def on_event(self, event: Event) -> None:
        """What a worker told."""
        if event.key not in self._models:
            self._models[event.key] = self.add(f"  {event.key}", None, stage="starting")
        bar, total = self._models[event.key], event.steps or None
        self.update(bar, total=total, completed=event.step, stage=event.stage)

    def on_row(self, row: dict[str, Any]) -> None:
        """A model that has ended."""
        self._ended += 1
        self.done += 1
        bar = self._models.pop(row["key"], None)
        if bar is not None:
            self.remove(bar)
        self.update(self._zoo, completed=self.done)
        if not (self.live and row["status"] == DONE):
            self.say(row_line(row))


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
