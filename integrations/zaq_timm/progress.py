"""Progress on standard error: a bar in a terminal, one line at the end anywhere else."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


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
    console = console or Console(stderr=True)
    begin = time.perf_counter()
    steps = 0
    if not console.is_terminal:

        def count(_: str) -> None:
            nonlocal steps
            steps += 1

        yield count
        text = done.format(steps=steps, seconds=f"{time.perf_counter() - begin:.1f}")
        console.print(text, highlight=False, soft_wrap=True)
        return
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)

        def begin_step(description: str) -> None:
            nonlocal steps
            bar.update(task, description=description, completed=steps)
            steps += 1

        yield begin_step
        bar.update(task, completed=total)
