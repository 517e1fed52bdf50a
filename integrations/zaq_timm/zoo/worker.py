"""One model's process: reads its job, does it, leaves a row. Started by `zaq_timm.zoo.pool`.

    python -m zaq_timm.zoo.worker FOLDER

FOLDER holds ``job.json``: the work as ``package.module:function`` and its payload. The function
gets payload, folder and a way to report progress, and returns the row. Progress goes to standard
output as JSON lines; all else that is printed goes to standard error. When standard input ends, the
run is gone, and so is this process with all its children.

What a worker may take, memory, threads and time, is decided here, too.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zaq_timm.zoo.errors import (
    DONE,
    FAILED,
    LEFT_OUT,
    OUT_OF_MEMORY,
    LeftOut,
    is_out_of_memory,
)
from zaq_timm.zoo.light import write_json

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


@dataclass(frozen=True)
class Limits:
    """Limits of one worker.

    Attributes:
        threads: computing threads.
        memory: bytes of resident memory, all its processes together; None for no limit.
        seconds: of wall-clock time, attempts together; None for no limit.
    """

    threads: int = 1
    memory: int | None = None
    seconds: float | None = None

    def environment(self) -> dict[str, str]:
        """The variables that a worker starts with."""
        return {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(self.threads))}


def limit_data(limit: int | None) -> None:
    """Lets allocations beyond the limit fail in this process, on systems that can (Linux).

    An allocation that fails is an error that can be told; one that succeeds may end in a kill.
    """
    if limit is None or not sys.platform.startswith("linux"):
        return
    import resource

    # Private memory counts, so code and shared pages are free; the rest of the slack is for what
    # is reserved and never touched: stacks of threads, arenas.
    slack = 512 * 2**20
    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        soft = limit + slack if hard == resource.RLIM_INFINITY else min(limit + slack, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def peak_memory() -> int | None:
    """Peak resident bytes of this process; None where it cannot be known."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def group_memory(group: int) -> int | None:
    """Resident bytes of all processes of a group; None where /proc does not tell."""
    total, seen = 0, False
    page = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
    for place in Path("/proc").glob("[0-9]*"):
        try:
            fields = (place / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                total += int(fields[21]) * page
                seen = True
        except (OSError, IndexError, ValueError):
            continue  # it ended while we looked
    return total if seen else None


def end_group(group: int) -> None:
    """Kills a process group that was started for a worker."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


ROW = "row.json"
JOB = "job.json"
DISK_FULL = 28
"""Exit code when the row cannot be written: no fault of the model's."""


def main(folder: Path) -> int:
    """Does the job in a folder; returns the exit code."""
    events = _own_standard_output()
    first = os.environ.get("RANK", "0") == "0"  # of torchrun's; the first one tells
    if first:
        _end_with_the_run()
    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    limit_data(job["memory"])
    begin = time.perf_counter()

    def report(stage: str, step: int = 0, steps: int = 0) -> None:
        if not first:
            return
        line = json.dumps({"stage": stage, "step": step, "steps": steps})
        with contextlib.suppress(OSError):
            os.write(events, (line + "\n").encode())

    place = folder if first else Path(tempfile.mkdtemp(prefix="zaq-rank-"))
    row = _outcome(job, place, report)
    row["measured"] = {
        "seconds": round(time.perf_counter() - begin, 3),
        "cpu_seconds": round(time.process_time(), 3),
        "peak_bytes": peak_memory(),
        **row.get("measured", {}),
    }
    if not first:
        shutil.rmtree(place)
        return 0
    try:
        write_json(folder / ROW, row)
    except OSError as error:
        print(f"cannot write {folder / ROW}: {error.strerror or error}", file=sys.stderr)
        return DISK_FULL
    return 0


def _outcome(job: dict[str, Any], folder: Path, report: Any) -> dict[str, Any]:
    """The row: what the work returned, or what became of it instead."""
    try:
        module, function = job["work"].split(":")
        sys.path[:0] = [p for p in job.get("path", []) if p not in sys.path]
        work = getattr(importlib.import_module(module), function)
        _set_threads(job["threads"])
        return {"status": DONE, "reason": None, **work(job["payload"], folder, report)}
    except LeftOut as reason:
        return {"status": LEFT_OUT, "reason": str(reason)}
    except Exception as error:
        traceback.print_exc()
        if is_out_of_memory(error):
            return {"status": OUT_OF_MEMORY, "reason": _one_line(error)}
        return {"status": FAILED, "reason": f"{type(error).__name__}: {_one_line(error)}"}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__


def _own_standard_output() -> int:
    """Keeps standard output for progress, and sends what is printed to standard error."""
    sys.stdout.flush()
    events = os.dup(1)
    os.dup2(2, 1)
    return events


def _end_with_the_run() -> None:
    """Watches standard input, which the run holds open as long as it lives."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1):
                pass
        if hasattr(os, "killpg"):
            os.killpg(os.getpgid(0), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _set_threads(threads: int) -> None:
    """Of torch, if the work needs it at all; for other libraries the environment says it."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)
        with contextlib.suppress(RuntimeError):  # once a process
            torch.set_num_interop_threads(1)


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stderr.flush()
    os._exit(code)  # threads of libraries have no say
