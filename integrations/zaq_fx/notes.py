"""One readable note in place of the host's wall of deprecation warnings."""

from __future__ import annotations

import inspect
import warnings

from zaq_fx._compat import silence_host

NOTE = (
    "torch.ao's FX mode works in this version of torch but will be removed from a later one; "
    "zaq_pt2e does the same with torchao's PT2E. (Said once; the host's own deprecation warnings "
    "are hidden. Call zaq_fx.show_host_warnings() first to see them.)"
)


class HostNote(UserWarning):
    """What a user should know about the host; ignore it by this category."""


_state = {"said": False, "hide": True}


def show_host_warnings() -> None:
    """Leave the host's warnings alone, and say nothing ourselves. Call before anything else."""
    _state["hide"] = False


def note_host() -> None:
    """Say the note once a process and hide the host's warnings."""
    if not _state["hide"]:
        return
    silence_host()
    if not _state["said"]:
        _state["said"] = True
        warnings.warn(NOTE, HostNote, stacklevel=_depth())


def _depth() -> int:
    """How many frames up the caller outside this package is."""
    package, depth = __name__.rpartition(".")[0], 1
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith(package):
        frame, depth = frame.f_back, depth + 1
    return depth - 1
