"""NNCF's CPU kernels: compiled on first use, which NNCF does silently and with little patience."""

from __future__ import annotations

import os
import shutil
import sys
import time

from zaq_nncf._compat import (
    TIMEOUT_VARIABLE,
    extension_folder,
    extension_is_loaded,
    fell_back,
    load_extension,
)

SECONDS = 1800
"""How long compilation may take; NNCF's own limit of 60 seconds is short for a busy machine."""


def compile_extension() -> None:
    """Compile and load NNCF's CPU kernels now, saying so, unless that was done already.

    Quantizers of this package do not need them; NNCF's own do: weights left to NNCF, per-channel
    activations, plain ``nncf.quantize``. The time limit is `SECONDS` unless the environment
    variable ``NNCF_EXTENSION_LOAD_TIMEOUT`` says otherwise. Without a compiler NNCF computes with
    torch's operators, which is slower but right; a line on standard error says what is missing.
    """
    if extension_is_loaded():
        return
    folder = extension_folder()
    if not list(folder.glob("*.so")):
        _say(f"zaq_nncf: compiling NNCF's CPU kernels, once ({folder}); about a minute ...")
    begin = time.perf_counter()
    timeout = os.environ.get(TIMEOUT_VARIABLE)
    if timeout is None:
        os.environ[TIMEOUT_VARIABLE] = str(SECONDS)
    try:
        load_extension()
    finally:
        if timeout is None:
            os.environ.pop(TIMEOUT_VARIABLE, None)
    if fell_back():
        _say(f"zaq_nncf: NNCF's CPU kernels could not be compiled: {_missing()}. {_WAY_OUT}")
    elif time.perf_counter() - begin > 5:
        _say(f"zaq_nncf: NNCF's CPU kernels are ready ({time.perf_counter() - begin:.0f} s)")


_WAY_OUT = (
    "NNCF's own quantizers compute with torch's operators instead: the same values, but training "
    "is slower. Install a C++ compiler and ninja (Debian: apt-get install g++ ninja-build), then "
    "start again."
)


def _missing() -> str:
    compiler = os.environ.get("CXX") or "g++"
    missing = [name for name in (compiler, "ninja") if shutil.which(name) is None]
    if missing:
        return f"{' and '.join(missing)} not found"
    return "compiler and ninja are there, but failed; NNCF's warning above says how"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
