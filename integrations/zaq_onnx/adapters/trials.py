"""One runtime on one file: what happened, here or in a process of its own.

In a process of its own a crash or a hang is an outcome like any other.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

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


# ---- In a process of its own ---------------------------------------------------------------------

_ROOT = Path(__file__).resolve().parents[1]
_BARE = f"""
import sys, types
package = types.ModuleType("zaq_onnx")
package.__path__ = [{os.fspath(_ROOT)!r}]
sys.modules["zaq_onnx"] = package
from zaq_onnx.adapters.trials import main
main(sys.argv[1])
"""
"""Does not run `zaq_onnx/__init__.py`, which imports torch: runtimes meet no library but theirs."""

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TVM_NUM_THREADS")


def try_apart(adapter: type[Adapter], path: str, inputs: list[Array], trial: Trial) -> Outcome:
    """What a runtime does with a file.

    Args:
        adapter: Of the runtime; the other process imports it by its name.
        path: The file.
        inputs: What to run on.
        trial: Times and folders.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        np.savez(place / "inputs.npz", *inputs)
        name = f"{adapter.__module__}:{adapter.__qualname__}"
        asked: dict[str, Any] = {"name": name, "trial": asdict(trial)}
        asked["path"] = os.path.abspath(path)
        if trial.float_file:
            asked["trial"]["float_file"] = os.path.abspath(trial.float_file)
        if trial.node_modules:
            asked["trial"]["node_modules"] = os.path.abspath(trial.node_modules)
        (place / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
        ended = _run([sys.executable, "-c", _BARE, folder], trial)
        return _read(place, ended)


def _run(command: list[str], trial: Trial) -> str:
    """Run a command in a group of its own; why it ended early, or nothing."""
    environment = os.environ | dict.fromkeys(_THREADS, str(trial.threads))
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
    )
    try:
        _, said = process.communicate(timeout=trial.timeout)
    except subprocess.TimeoutExpired:
        _kill(process)
        process.communicate()
        return f"not done within {trial.timeout:g} s"
    except BaseException:
        _kill(process)
        raise
    if process.returncode < 0:
        return f"the process died: {signal.Signals(-process.returncode).name}"
    lines = said.strip().splitlines()
    return lines[-1] if process.returncode and lines else ""


def _kill(process: subprocess.Popen[str]) -> None:
    """End a process, and where there are groups of them, those that it started."""
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def _read(place: Path, ended: str) -> Outcome:
    written = place / "outcome.json"
    if not written.exists():
        return Outcome(message=ended or "the process ended without a word")
    out = Outcome(**json.loads(written.read_text(encoding="utf-8")))
    out.kernels = None if out.kernels is None else Counter(out.kernels)
    out.layers = None if out.layers is None else (out.layers[0], out.layers[1])
    if out.stage == "time":
        out.outputs, out.untimed = _arrays(place / "outputs.npz"), out.message or ended
        out.message = ""
    else:
        out.message = out.message or ended or "the process ended without a word"
    return out


def _arrays(path: Path) -> list[Array]:
    with np.load(path) as stored:
        return [stored[f"arr_{i}"] for i in range(len(stored.files))]


def main(folder: str) -> None:
    """The other process: reads what is asked, writes what happened."""
    place = Path(folder)
    asked = json.loads((place / "asked.json").read_text(encoding="utf-8"))
    trial, inputs = Trial(**asked["trial"]), _arrays(place / "inputs.npz")
    adapter = _adapter(asked["name"])(trial.node_modules)
    out = Outcome()
    _write(place, out)
    try:
        measure(adapter, asked["path"], inputs, trial, out, lambda: _write(place, out))
    except Exception as error:  # whatever it is, it is what a user would see
        out.message = message_of(error)
    _write(place, out)
    adapter.close()
    if out.message:
        return
    adapter = _adapter(asked["name"])(trial.node_modules)
    try:
        time_float(adapter, inputs, trial, out)
    except Exception:  # then there is no time to compare with
        out.float_milliseconds = None
    _write(place, out)
    adapter.close()


def _adapter(name: str) -> type[Adapter]:
    module, _, of = name.partition(":")
    cls: type[Adapter] = getattr(import_module(module), of)
    return cls


def _write(place: Path, out: Outcome) -> None:
    if out.stage == "time" and not (place / "outputs.npz").exists():
        np.savez(place / "outputs.npz", *out.outputs)
    text = json.dumps({name: value for name, value in vars(out).items() if name != "outputs"})
    partial = place / "outcome.part"
    partial.write_text(text, encoding="utf-8")
    partial.replace(place / "outcome.json")


def message_of(error: Exception) -> str:
    """The first line that says something, and what a runtime in Rust says it was caused by."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "Caused by:" in lines:
        end = lines.index("Stack backtrace:") if "Stack backtrace:" in lines else len(lines)
        return f"{lines[0]}: {lines[end - 1]}"
    return lines[0] if lines else type(error).__name__
