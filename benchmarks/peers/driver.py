"""Drives the peers' tools: one process each, in a Python of its own if need be.

The request is a JSON file; calibration images go, and outputs come, as safetensors.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from benchmarks.data.images import shared_images
from benchmarks.data.subjects import Subject

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "pwlq"
"""Strategy whose synthetic images calibrate peers where there are no real ones."""


class PeerError(RuntimeError):
    """A peer could not do what it was asked for; the text is its own."""


def pythons(listed: list[str]) -> dict[str, str]:
    """``NAME=PATH`` arguments as a dictionary.

    Raises:
        ValueError: If one is not of that form.
    """
    paths = {}
    for text in listed:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise ValueError(f"--peer-python expects NAME=PATH, got {text!r}")
        paths[name] = path
    return paths


def run_peer(job: dict[str, Any], subject: Subject, args: argparse.Namespace) -> dict[str, Any]:
    """A peer's row without its scores, and under ``outputs`` what its model answers.

    Raises:
        PeerError: If the tool fails or takes too long.
    """
    peer, _, recipe = job["method"].partition("/")
    if job["images"] == "real":
        images, seconds = subject.calibration(job["seed"]), 0.0
        source = f"{len(images)} `train` images"
    else:
        synthetic, seconds = shared_images(job, subject, args.cache, RECIPE)
        if synthetic is None:
            raise PeerError(f"no synthetic images of {RECIPE}")
        images, source = synthetic, f"{len(synthetic)} synthetic images (ours)"
    python = pythons(args.peer_python).get(peer, sys.executable)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        save_file({"images": images.contiguous()}, place / "calibration.safetensors")
        weight_bits, activation_bits = (int(b) for b in job["bits"].split("/"))
        request = {
            "peer": peer,
            "recipe": recipe,
            "model": job["model"],
            "data": _text(args.data),
            "imagenet": _text(args.imagenet),
            "weight_bits": weight_bits,
            "activation_bits": activation_bits,
            "seed": job["seed"],
            "effort": job["effort"],
            "limit": args.limit,
            "threads": args.threads,
        }
        (place / "request.json").write_text(json.dumps(request))
        _run(python, place, args.peer_timeout)
        result: dict[str, Any] = json.loads((place / "result.json").read_text())
        if "error" in result:
            raise PeerError(result["error"])
        result["outputs"] = load_file(place / "outputs.safetensors")["outputs"]
    result["seconds"] = round(result["seconds"], 1)
    result["images_seconds"] = round(seconds, 1)
    result["protocol"] = {**result["protocol"], "calibration": source, "seed": job["seed"]}
    result["protocol"]["evaluation"] = f"{len(result['outputs'])} images, used for nothing else"
    result["data"] = job["images"]
    return result


def _text(folder: Path | None) -> str | None:
    return None if folder is None else str(folder.resolve())


def _run(python: str, place: Path, timeout: float) -> None:
    paths = [str(ROOT), str(ROOT / "integrations"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
    command = [python, "-m", "benchmarks.peers.run", str(place)]
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command, env=environment, cwd=ROOT, timeout=timeout, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired as error:
        raise PeerError(f"stopped after {time.perf_counter() - started:.0f} s") from error
    except OSError as error:
        raise PeerError(f"cannot start {python}: {error}") from error
    if not (place / "result.json").exists():
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        raise PeerError(f"ended with {done.returncode}: {' '.join(last)}")
