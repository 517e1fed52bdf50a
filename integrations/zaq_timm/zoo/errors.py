"""What can become of a model: the words for it, and the exceptions that lead there."""

from __future__ import annotations

DONE = "done"
LEFT_OUT = "left out"
FAILED = "failed"
OUT_OF_MEMORY = "out of memory"
TIMED_OUT = "timed out"
KILLED = "killed"

STATUSES = (DONE, LEFT_OUT, FAILED, OUT_OF_MEMORY, TIMED_OUT, KILLED)
"""Every row's status is one of these; all but ``done`` come with a reason."""


class LeftOut(Exception):
    """The model cannot be quantized, for the reason given; no failure of ours or of the machine."""


class OutOfMemory(Exception):
    """Memory ran out; a smaller batch may help."""


class RunError(Exception):
    """The whole run cannot go on; the text says why and what to do."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on whatever device."""
    if isinstance(error, MemoryError | OutOfMemory):
        return True
    text = str(error).lower()
    words = (
        "out of memory",
        "can't allocate memory",
        "not enough memory",
        "cannot allocate memory",
    )
    return isinstance(error, RuntimeError | OSError) and any(word in text for word in words)
