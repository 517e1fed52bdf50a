"""A runtime tried in a process of its own: a crash or a hang is an outcome like any other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from zaq_onnx.adapters.adapter import Adapter, Array
from zaq_onnx.adapters.measuring import Outcome, Trial, measure, time_float

_ROOT = Path(__file__).resolve().parents[1]
_BARE = f"""
import sys, types
package = types.ModuleType("zaq_onnx")
package.__path__ = [{os.fspath(_ROOT)!r}]
sys.modules["zaq_onnx"] = package
from zaq_onnx.adapters.process import main
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
