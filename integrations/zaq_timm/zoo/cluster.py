"""A zoo spread over a Ray cluster: the same workers, limits and results file, on many machines.

Each model is a Ray task. It starts the same worker process on whatever machine Ray chose, in a
folder of that machine, and hands row and files back; this process alone writes results.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from zaq_timm.zoo.errors import KILLED, RunError
from zaq_timm.zoo.pool import Event, Pool, Task
from zaq_timm.zoo.worker import Limits

AHEAD = 2
"""Tasks that wait at Ray for each of its processors, so that none is idle."""


def import_ray() -> Any:
    """Ray, or a RunError that says how to get it."""
    try:
        import ray
    except ImportError as error:
        raise RunError(
            "--cluster ray needs Ray, which is not installed; install it with: pip install "
            "'zaq_plugin[ray]'."
        ) from error
    return ray


def run_on_ray(
    tasks: Iterable[Task],
    address: str,
    limits: Limits,
    on_event: Callable[[Event], None] = lambda _: None,
) -> Iterator[tuple[Task, dict[str, Any]]]:
    """Yields each task with its row, as `Pool.run` does.

    Args:
        tasks: the jobs; their folders are filled with what the workers wrote.
        address: of the cluster; empty for one on this machine, or the one it belongs to.
        limits: of each worker; ``threads`` is how many processors Ray sets aside for it.
        on_event: told when a task is handed to Ray.

    Raises:
        RunError: Ray is missing, or cannot be reached.
    """
    ray = import_ray()
    started = not ray.is_initialized()
    if started:
        _require_listener(address)
        try:
            ray.init(address=address or None, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise RunError(f"no Ray cluster at {address!r}: {error}") from error
    remote = ray.remote(num_cpus=limits.threads, max_retries=3)(_work)
    waiting: dict[Any, Task] = {}
    coming = iter(tasks)
    try:
        processors = int(ray.cluster_resources().get("CPU", 1))
        ahead = max(1, AHEAD * processors // limits.threads)
        more = True
        while more or waiting:
            while more and len(waiting) < ahead:
                task = next(coming, None)
                more = task is not None
                if task is not None:
                    plain = {"key": task.key, "work": task.work, "payload": task.payload}
                    waiting[remote.remote(plain, task.ranks, limits)] = task
                    on_event(Event(task.key))
            if waiting:
                (ready,), _ = ray.wait(list(waiting), num_returns=1)
                task = waiting.pop(ready)
                yield task, _taken(ray, ready, task)
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)
        if started:
            ray.shutdown()


def _require_listener(address: str) -> None:
    """Raises RunError if nobody listens at an address; Ray itself takes minutes to say so."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # "auto", or none
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise RunError(f"no Ray cluster at {address!r}: {error.strerror or error}.") from error


def _taken(ray: Any, reference: Any, task: Task) -> dict[str, Any]:
    """A task's row; its files are put into its folder."""
    try:
        row, files = ray.get(reference)
    except ray.exceptions.RayError as error:
        reason = f"Ray lost it: {' '.join(str(error).split())[:300]}"
        return {"key": task.key, "status": KILLED, "reason": reason}
    for name, data in files.items():
        path = task.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return dict(row)


def _work(
    plain: dict[str, Any], ranks: int, limits: Limits
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """On the machine that Ray chose: the worker, and what it left."""
    folder = Path(tempfile.mkdtemp(prefix="zaq-"))
    try:
        task = Task(plain["key"], plain["work"], plain["payload"], folder, ranks)
        (done, row), *_ = Pool(1, replace(limits)).run([task])
        places = (p for p in done.folder.rglob("*") if p.is_file())
        return row, {str(p.relative_to(folder)): p.read_bytes() for p in places}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
