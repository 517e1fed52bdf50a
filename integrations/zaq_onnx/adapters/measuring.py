"""One runtime on one file: what happened."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module

from zaq_onnx.adapters.adapter import Adapter, Array


@dataclass(frozen=True)
class Trial:
    """How a runtime is tried.

    Attributes:
        threads: Threads that it may use.
        seconds: For how long a file is run to be timed; 0: it is not.
        float_file: The same network in float, timed beside it.
        timeout: Seconds after which a runtime in a process of its own is ended.
        node_modules: Folder of npm packages; besides, NODE_PATH is looked into.
    """

    threads: int = 1
    seconds: float = 0.0
    float_file: str | None = None
    timeout: float = 300.0
    node_modules: str | None = None


@dataclass
class Outcome:
    """What a runtime did with a file.

    Attributes:
        message: Why it failed; empty where it did not.
        stage: ``load``, ``run`` or ``time``: where it failed, or what was last begun.
        untimed: Why it answered, but could not be timed.
        load_seconds: From the file to something that runs.
        outputs: Its answer.
        kernels: How many of each kernel; None where the runtime does not tell.
        layers: Layers in integers and in float; None as above.
        milliseconds: The least latency; None where it was not timed.
        float_milliseconds: The same of the float file.
    """

    message: str = ""
    stage: str = "load"
    untimed: str = ""
    load_seconds: float = 0.0
    outputs: list[Array] = field(default_factory=list)
    kernels: Counter[str] | None = None
    layers: tuple[int, int] | None = None
    milliseconds: float | None = None
    float_milliseconds: float | None = None


def measure(
    adapter: Adapter,
    path: str,
    inputs: list[Array],
    trial: Trial,
    out: Outcome,
    reached: Callable[[], None] = lambda: None,
) -> None:
    """Load a file, run it, look at the kernels, time it; what is known is put into `out` at once.

    Args:
        adapter: Of the runtime.
        path: The file.
        inputs: What to run on.
        trial: Times and folders.
        out: Where results are put.
        reached: Called when the file is loaded, and when there is an answer.

    Raises:
        Exception: whatever the runtime raises.
    """
    for name in adapter.modules:
        import_module(name)
    begin = time.perf_counter()
    adapter.load(path, inputs, trial.threads)
    seconds = time.perf_counter() - begin
    out.load_seconds = seconds if adapter.loaded_in is None else adapter.loaded_in
    out.stage = "run"
    reached()
    if inputs:
        out.outputs = adapter.run(inputs)
    out.stage = "time"
    reached()
    out.kernels = adapter.kernels()
    out.layers = None if out.kernels is None else adapter.layers(out.kernels)
    if trial.seconds and inputs:
        out.milliseconds = adapter.milliseconds(inputs, trial.seconds)


def time_float(adapter: Adapter, inputs: list[Array], trial: Trial, out: Outcome) -> None:
    """Time the float file, where there is one.

    Raises:
        Exception: whatever the runtime raises.
    """
    if trial.float_file and trial.seconds and inputs:
        adapter.load(trial.float_file, inputs, trial.threads)
        adapter.run(inputs)
        out.float_milliseconds = adapter.milliseconds(inputs, trial.seconds)
