"""What a worker may take: memory, threads, time; and how a whole process group is ended."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

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
