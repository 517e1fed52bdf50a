"""The machine: processor, memory, compilers, read from the system; its int8 kernels, measured."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
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


EXACT, SATURATES, UNKNOWN = "exact", "saturates", "not measured"

ADVICE = {
    "torch": "zaq_fx.prepare(..., activations=7, input_bits=7), or PWLQQuantizer(..., "
    "activations=7, input_bits=7) in PT2E",
    "onnxruntime": "zaq_onnx.export(..., reduce_range=True)",
    "openvino": "zaq_onnx.export(..., reduce_range=True)",
}
"""Runtime to the setting with which its sums cannot saturate."""


@dataclass(frozen=True)
class Kernels:
    """A runtime's int8 kernels.

    Attributes:
        runtime: whose they are.
        answer: one of `EXACT`, `SATURATES`, `UNKNOWN`.
        reason: why nothing was measured.
    """

    runtime: str
    answer: str
    reason: str = ""

    @property
    def advice(self) -> str | None:
        """The safe setting, where one is needed."""
        return ADVICE[self.runtime] if self.answer == SATURATES else None


def measure_kernels() -> list[Kernels]:
    """What the kernels of every runtime do with two products that exceed 16 bits."""
    return [measure(runtime) for runtime in ADVICE]


def measure(runtime: str) -> Kernels:
    """What one runtime's kernels do; a key of `ADVICE`."""
    try:
        if runtime != "torch":
            import_module(runtime)
        saturated = probe(runtime)()
    except (ImportError, RuntimeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Kernels(runtime, UNKNOWN, lines[0])
    return Kernels(runtime, SATURATES if saturated else EXACT)


def probe(runtime: str) -> Callable[[], bool]:
    """What finds out whether a runtime's kernels saturate here."""
    if runtime == "torch":
        from zaq_fx.checking import kernels_saturate

        return kernels_saturate
    from zaq_onnx.runtimes import saturates as of_runtime

    return lambda: of_runtime(runtime)


def warning(runtime: str) -> str | None:
    """One sentence where a runtime's kernels saturate here; None where they do not."""
    kernels = measure(runtime)
    if kernels.advice is None:
        return None
    return (
        f"int8 kernels of {runtime} saturate on this processor (they add two products in 16 bits); "
        f"exact: {kernels.advice}"
    )
