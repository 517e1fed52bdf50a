"""What the processor that the tests run on can do."""

from __future__ import annotations

import platform
from pathlib import Path


def kernels_are_exact() -> bool:
    """Whether int8 kernels add u8 x s8 products exactly: x86 needs VNNI for it, others do."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    flags = Path("/proc/cpuinfo")
    return not flags.exists() or "vnni" in flags.read_text()


KERNELS_ARE_EXACT = kernels_are_exact()
