"""What `verify` asks of a runtime."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
FEWEST, MOST = 3, 1000
"""How often a file is run to be timed."""


class Adapter(ABC):
    """One runtime, with at most one file loaded.

    Attributes:
        name: Of the runtime, as users type it.
        install: The command that installs it.
        integer: Beginnings of the names of its kernels of layers that multiply integers.
        floating: The same for floats; a kernel that is both is an integer one.
        modules: What is imported before loading is timed.
        loaded_in: Seconds that loading took, by a clock closer to it than the caller's.
    """

    name: str
    install: str
    integer: tuple[str, ...] = ()
    floating: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    loaded_in: float | None = None

    def __init__(self, node_modules: str | None = None) -> None:
        """Take a folder of npm packages, which those that run under Node look into."""
        self.node_modules = node_modules

    @abstractmethod
    def installed(self) -> str | None:
        """The version; None where the runtime is missing. Imports nothing."""

    @abstractmethod
    def load(self, path: str, inputs: list[Array], threads: int) -> None:
        """Get a file ready.

        Args:
            path: The file.
            inputs: What it will be run on, for runtimes that compile for fixed shapes.
            threads: Threads within an operator.
        """

    @abstractmethod
    def run(self, inputs: list[Array]) -> list[Array]:
        """All outputs of the file that was loaded."""

    def kernels(self) -> Counter[str] | None:
        """How many of each kernel it runs; None where the runtime does not tell."""
        return None

    def layers(self, kernels: Counter[str]) -> tuple[int, int]:
        """How many layers run in integers, and how many in float."""
        whole = sum(n for name, n in kernels.items() if name.startswith(self.integer or ("\0",)))
        both = self.integer + self.floating
        return whole, sum(n for name, n in kernels.items() if name.startswith(both)) - whole

    def milliseconds(self, inputs: list[Array], seconds: float) -> float:
        """The least time of a run, in ms, of as many as fit into some seconds."""
        return least(lambda: self.run(inputs), seconds)

    def close(self) -> None:
        """Let go of processes and files."""
        return


def least(run: Callable[[], Any], seconds: float) -> float:
    """The least time of a call, in ms."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < FEWEST or (time.perf_counter() < end and len(times) < MOST):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return 1000 * min(times)


def version_of(module: str, *distributions: str) -> str | None:
    """The version of an installed module; None if it is missing.

    Args:
        module: What is imported.
        distributions: Packages that bring it.
    """
    if find_spec(module) is None:
        return None
    for name in distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "of unknown version"
