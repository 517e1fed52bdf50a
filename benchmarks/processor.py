"""The processor that int8 kernels see: its instructions, and what libraries were denied."""

from __future__ import annotations

import os
import platform
from pathlib import Path

LIMITS = (
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "FBGEMM_ENABLE_INSTRUCTIONS",
    "ATEN_CPU_CAPABILITY",
)
"""Variables that make a library use fewer instructions than the processor has."""
_WIDTHS = {"avx512f": "AVX-512", "avx2": "AVX2"}
_ADDING = {"amx_int8": "AMX", "avx512_vnni": "VNNI", "avx_vnni": "AVX-VNNI"}
"""Instructions that add products of int8 in 32 bits."""


def processor() -> str:
    """Such as ``AVX-512, VNNI``; without VNNI kernels of x86 add products in 16 bits."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return platform.machine()
    path = Path("/proc/cpuinfo")
    flags = set(path.read_text(encoding="utf-8").split()) if path.exists() else set()
    width = next((name for flag, name in _WIDTHS.items() if flag in flags), "x86")
    adding = [name for flag, name in _ADDING.items() if flag in flags] or ["no VNNI"]
    limits = [f"{name}={os.environ[name]}" for name in LIMITS if name in os.environ]
    return ", ".join([width, *adding, *limits])
