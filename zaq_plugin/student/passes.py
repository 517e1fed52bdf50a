"""Forward passes that stop in front of layers and go on later, each on a thread of its own.

One pass runs at a time: threads are only what keeps a pass of an ordinary module, wherever it is in
its code, while the others catch up.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from zaq_plugin.student.batches import Call, fresh
from zaq_plugin.student.layer import QuantLayer
from zaq_plugin.student.view import Student


class Left(BaseException):
    """Raised inside a pass to leave it early; no model that catches its own errors holds it up."""


class Pass:
    """One batch's way through a student, from layer to layer.

    Args:
        student: In evaluation mode.
        call: The batch.
        stops_at: Whether the pass is to stop in front of a layer, by its name.

    Attributes:
        at: Name of the layer that the pass has stopped in front of; None before `go` and at the
            end.
        x: What that layer is going to multiply.
    """

    def __init__(self, student: Student, call: Call, stops_at: Callable[[str], bool]) -> None:
        self.student, self.call, self.stops_at = student, call, stops_at
        self.at: str | None = None
        self.x: Tensor | None = None
        self._error: BaseException | None = None
        self._leaving = False
        self._surroundings = _Surroundings()
        self._mine, self._theirs = threading.Semaphore(0), threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self._ended = False

    def go(self) -> None:
        """Go on to the next stop, or to the end.

        Raises:
            BaseException: What the model raised on its way.
        """
        if self._ended:
            return
        if self._thread is None:
            context = contextvars.copy_context()
            self._thread = threading.Thread(target=context.run, args=(self._run,), daemon=True)
            self._thread.start()
        else:
            self.at = self.x = None
            self._mine.release()
        self._theirs.acquire()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def leave(self) -> None:
        """End the pass where it is."""
        self._leaving = True
        if self._thread is None:
            return
        with suppress(Exception):  # what a model says about being left is no error of the caller's
            self.go()
        self._thread.join()

    def _run(self) -> None:
        try:
            with self._surroundings.entered():
                self.student.run(fresh(self.call), self._before)
        except Left:
            pass
        except BaseException as error:  # it is raised again by `go`
            self._error = error
        finally:
            self.at = self.x = None
            self._ended = True
            self._theirs.release()

    def _before(self, layer: QuantLayer, x: Tensor) -> None:
        # Hooks of all passes stand in front of the same modules.
        if threading.current_thread() is not self._thread:
            return
        if self._leaving:
            raise Left
        if not self.stops_at(layer.name):
            return
        self.at, self.x = layer.name, x
        self._theirs.release()
        self._mine.acquire()
        if self._leaving:
            raise Left


class _Surroundings:
    """What torch keeps for each thread, as it is on the caller's: default device and autocast."""

    def __init__(self) -> None:
        self._device = torch.get_default_device()
        self._autocast = [
            (kind, torch.get_autocast_dtype(kind))
            for kind in ("cpu", "cuda")
            if torch.is_autocast_enabled(kind)
        ]

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The same on this thread, without gradients."""
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if self._device.type != "cpu":
                stack.enter_context(self._device)
            for kind, dtype in self._autocast:
                stack.enter_context(torch.autocast(kind, dtype))
            yield


class Passes:
    """Several batches' ways through a student, side by side.

    Args:
        student: In evaluation mode.
        calls: The batches.
    """

    def __init__(self, student: Student, calls: Sequence[Call]) -> None:
        self._passed: set[str] = set()
        self._all = [Pass(student, call, self._stops_at) for call in calls]
        self._begun = False

    def _stops_at(self, name: str) -> bool:
        return name not in self._passed

    def inputs(self, name: str) -> Iterator[Tensor]:
        """What a layer is going to multiply, of every batch that has come to it."""
        if not self._begun:
            self._begun = True
            for each in self._all:
                each.go()
        for each in self._all:
            if each.at == name and each.x is not None:
                yield each.x

    def let_go(self, name: str) -> None:
        """Let the batches that wait in front of a layer go on to their next one."""
        self._passed.add(name)
        for each in self._all:
            if each.at == name:
                each.go()

    def close(self) -> None:
        """End all of them, wherever they are."""
        for each in self._all:
            each.leave()


def run_up_to(
    student: Student, call: Call, name: str, times: int, take: Callable[[Tensor], Any]
) -> bool:
    """Run one batch as far as a layer's last call; returns whether it got there at all.

    Args:
        student: In evaluation mode.
        call: The batch.
        name: Of the layer.
        times: How often the layer is called in a pass.
        take: Gets the layer's input at each call.
    """
    seen = 0

    def look(layer: QuantLayer, x: Tensor) -> None:
        nonlocal seen
        if layer.name != name:
            return
        take(x)
        seen += 1
        if seen == times:
            raise Left

    with suppress(Left):
        student.run(fresh(call), look)
    return seen > 0
