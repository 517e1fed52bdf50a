"""The machine: processor, memory, compilers. Read from the system; nothing is loaded for it."""

from __future__ import annotations

import os
import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

COMPILERS = ("c++", "g++", "clang++", "cl", "ninja")
_CPU, _MEMORY = Path("/proc/cpuinfo"), Path("/proc/meminfo")
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Processor:
    """The processor, as far as int8 arithmetic is concerned.

    Attributes:
        name: as the system calls it.
        machine: the architecture (``x86_64``, ``aarch64``).
        cores: how many this process may use.
        vnni, amx: whether it has instructions that add products of int8 in 32 bits, one vector or
            one tile at a time; None where the system does not tell.
    """

    name: str
    machine: str
    cores: int
    vnni: bool | None
    amx: bool | None


def processor(cpuinfo: Path = _CPU) -> Processor:
    """The processor that this process runs on."""
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.+)$", text, re.MULTILINE)
    features = set(flags[1].split()) if flags else None
    return Processor(
        named[1].strip() if named else platform.processor() or "unknown",
        platform.machine(),
        usable_cores(),
        None if features is None else bool({"avx512_vnni", "avx_vnni", "avx_vnni_int8"} & features),
        None if features is None else "amx_int8" in features,
    )


def usable_cores() -> int:
    """Cores that this process may run on: fewer than the machine's inside many containers."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory(meminfo: Path = _MEMORY) -> tuple[int | None, int | None]:
    """Bytes in all and bytes free, within the container's limit; None where nobody tells."""
    text = meminfo.read_text(encoding="utf-8") if meminfo.is_file() else ""
    sizes = {
        name: int(value) * 1024
        for name, value in re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB", text, re.MULTILINE)
    }
    total, free = sizes.get("MemTotal"), sizes.get("MemAvailable")
    for path in _LIMITS:
        limit = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
        if limit.isdigit() and total is not None and int(limit) < total:
            total = int(limit)
            free = None if free is None else min(free, total)
    return total, free


def compilers() -> dict[str, str]:
    """Name to path of the compilers of C++ on the path, and ninja, which torch builds with."""
    paths = {name: shutil.which(name) for name in COMPILERS}
    return {name: path for name, path in paths.items() if path}
