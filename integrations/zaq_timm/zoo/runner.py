"""A run: its plan, and the way from there to results on disk, whatever happens on the way."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from zaq_timm.zoo.light import format_in_words
from zaq_timm.zoo.normalisation import in_words
from zaq_timm.zoo.places import check_places
from zaq_timm.zoo.pool import Event, Pool, Task
from zaq_timm.zoo.progress import ZooProgress
from zaq_timm.zoo.quantities import seconds_of, size_in_bytes
from zaq_timm.zoo.references import Reference, check_module, find_references
from zaq_timm.zoo.results import Results
from zaq_timm.zoo.settings import Settings
from zaq_timm.zoo.worker import Limits

WORK = "zaq_timm.zoo.job:run_job"


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        settings: of the run.
        references: its models, in order.
    """

    settings: Settings
    references: tuple[Reference, ...]

    @classmethod
    def make(cls, settings: Settings) -> Plan:
        """The plan; see `find_references` and `check_places` for the errors."""
        check_places(settings)
        references = tuple(find_references(settings))
        for reference in references:
            if reference.is_function:
                check_module(reference.name)
        return cls(settings, references)

    @property
    def keys(self) -> list[str]:
        """The models' keys, in order."""
        return [reference.key for reference in self.references]

    @property
    def shared(self) -> dict[str, Any]:
        """What all results in the folder must have in common."""
        return self.settings.shared

    def task(self, key: str, folder: Path) -> Task:
        """The job of one model, to be done in a folder."""
        reference = next(r for r in self.references if r.key == key)
        payload = {
            "reference": reference.to_dict(),
            "settings": asdict(self.settings),
            "batch": self.settings.batch,
        }
        return Task(key, WORK, payload, folder, self.settings.ranks)

    def _host(self) -> str:
        """Who quantizes, in words."""
        if self.settings.simulates:
            return "simulated"
        host = self.settings.wanted_host
        return "PT2E, or FX where that fails" if host == "auto" else host

    def lines(self, done: Mapping[str, Any], todo: list[str]) -> list[str]:
        """The plan in words, for ``--dry-run``."""
        settings = self.settings
        lines = [
            f"weights      {format_in_words(settings.weights)}"
            + (f", widths by --budget {settings.budget}" if settings.budget else ""),
            f"activations  {settings.activations} bits, ranges from {settings.calibration_images} "
            "synthetic images",
            f"images       {settings.input_size or 'of the size that the model says'}; "
            + in_words(settings, not any(r.is_function for r in self.references)),
            f"host         {self._host()}",
            f"zero-shot    {settings.zero_shot}",
            *([f"strategy     {settings.strategy}"] if settings.strategy else []),
            f"measured on  {settings.eval or f'{settings.test_images} synthetic images'}",
            f"export       {settings.export}",
            f"workers      {settings.jobs}, {settings.threads} thread(s) each, memory "
            f"{settings.memory or 'unlimited'}, time {settings.timeout or 'unlimited'}"
            + (f", spread by {settings.cluster}" if settings.cluster else ""),
            f"results      {settings.out}",
            "",
            f"{len(self.references)} model(s), {len(todo)} to do",
        ]
        for reference in self.references:
            row = done.get(reference.key)
            state = "to do" if reference.key in todo else row["status"] if row else "to do"
            again = ", again" if row is not None and reference.key in todo else ""
            weights = f", weights from {reference.checkpoint}" if reference.checkpoint else ""
            lines.append(f"  {reference.name}: {state}{again}{weights}")
        return lines


class Planned(Protocol):
    """What `run` needs of a plan."""

    @property
    def keys(self) -> list[str]:
        """The rows' keys, in order."""

    @property
    def shared(self) -> dict[str, Any]:
        """What all results in the folder must have in common."""

    def task(self, key: str, folder: Path) -> Task:
        """The job behind a key."""


def run(
    plan: Planned,
    out: Path,
    *,
    jobs: int = 1,
    limits: Limits | None = None,
    retry: str = "killed",
    restart: bool = False,
    cluster: str = "",
    quiet: bool = False,
    on_row: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Results:
    """Does what a plan has left to do; each row is on disk before the next model begins.

    Args:
        plan: `Plan`, or anything with keys and tasks.
        out: the results' folder.
        jobs, limits: see `Pool`.
        retry: see `Results.unfinished`.
        restart: delete the results that are there.
        cluster: ``ray`` or ``ray:ADDRESS`` in place of this machine alone.
        quiet: no progress.
        on_row: told each row once it is on disk.

    Returns:
        All rows, earlier ones included.

    Raises:
        RunError: the folder cannot be used, or the disk is full.
        KeyboardInterrupt: Ctrl-C, or SIGTERM; workers are gone, and rows are safe.
    """
    limits = limits or Limits()
    with _terminated_as_interrupted(), Results.open(out, plan.shared, restart) as results:
        todo = results.unfinished(plan.keys, retry)
        total = len(plan.keys)
        with ZooProgress(total, total - len(todo), quiet) as progress:
            workers = _workers(cluster, jobs, limits, progress.on_event)
            with contextlib.closing(workers(_tasks(plan, results, todo))) as rows:
                for task, row in rows:
                    results.add(row, task.folder)
                    progress.on_row(row)
                    on_row(row)
    return results


def _workers(
    cluster: str, jobs: int, limits: Limits, on_event: Callable[[Event], None]
) -> Callable[[Iterable[Task]], Any]:
    if cluster:
        from zaq_timm.zoo.cluster import run_on_ray

        _, _, address = cluster.partition(":")
        return lambda tasks: run_on_ray(tasks, address, limits, on_event)
    return Pool(jobs, limits, on_event).run


def _tasks(plan: Planned, results: Results, todo: list[str]) -> Iterator[Task]:
    """The jobs; a folder is made when its turn comes."""
    for key in todo:
        workplace = results.workplace(key)
        try:
            yield plan.task(key, workplace)
        except GeneratorExit:
            shutil.rmtree(workplace, ignore_errors=True)
            raise


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does: workers killed, rows kept."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_settings(
    settings: Settings, plan: Plan, on_row: Callable[[dict[str, Any]], None] = lambda _: None
) -> Results:
    """`run` with what the settings say."""
    return run(
        plan,
        Path(settings.out),
        jobs=settings.jobs,
        limits=limits_of(settings),
        retry=settings.retry,
        restart=settings.restart,
        cluster=settings.cluster,
        quiet=settings.quiet,
        on_row=on_row,
    )


def limits_of(settings: Settings) -> Limits:
    """The workers' limits that the settings name."""
    return Limits(
        settings.threads,
        size_in_bytes("memory", settings.memory),
        seconds_of("timeout", settings.timeout),
    )
