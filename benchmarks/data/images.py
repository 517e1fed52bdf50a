"""Synthetic images of the field benchmark, made once for each recipe and seed and kept."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.data.subjects import SYNTHETIC, VALIDATION, Subject, clock
from zaq_plugin.strategies import Request, synthetic_images
from zaq_plugin.strategies.compose import compose


def request_for(
    job: dict[str, Any],
    subject: Subject,
    synthetic: Tensor | None = None,
    count: int | None = None,
) -> Request:
    """What a strategy is asked for by a job; ``count`` images are made, `SYNTHETIC` by default."""
    count = count or SYNTHETIC[subject.name]
    weight_bits, activation_bits = (int(b) for b in job["bits"].split("/"))
    return Request(
        weight_bits,
        activation_bits,
        levels=job["levels"],
        example_inputs=(subject.images[:1],),
        mean=subject.mean,
        std=subject.std,
        seed=job["seed"],
        images=subject.calibration(job["seed"]) if job["images"] == "real" else None,
        synthetic=synthetic,
        synthetic_count=count,
        batch_size=min(64, count),
        effort=job["effort"],
    )


def shared_images(
    job: dict[str, Any],
    subject: Subject,
    cache: Path,
    method: str | None = None,
    count: int | None = None,
) -> tuple[Tensor | None, float]:
    """Synthetic images of a method's recipe, and the seconds that making them took (`clock`).

    Args:
        job: Its model, seed and effort decide which images they are.
        subject: The model.
        cache: Folder where they are kept for other jobs and other runs.
        method: Whose recipe; the job's by default.
        count: How many; `SYNTHETIC` by default.

    Returns:
        None and 0 if the job has real images, or its method makes none.
    """
    strategy = compose(method or job["method"])
    if strategy.recipe is None or (method is None and job["images"] == "real"):
        return None, 0.0
    request = request_for({**job, "levels": "auto", "images": "synthetic"}, subject, None, count)
    network = subject.name.removesuffix(VALIDATION)
    name = f"{network}-{strategy.recipe}-{request.synthetic_count}-{request.effort}"
    device = subject.images.device.type
    name += "" if device == "cpu" else f"-{device}"
    path = cache / f"{name}-{request.seed}.safetensors"
    if not path.exists():
        started = clock(subject)
        images = synthetic_images(strategy, subject.model, request)
        if images is None:
            return None, 0.0
        seconds = torch.tensor(clock(subject) - started)
        cache.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{time.time_ns()}.tmp")
        save_file({"images": images.contiguous().cpu(), "seconds": seconds}, temporary)
        temporary.replace(path)
    stored = load_file(path)
    return stored["images"], float(stored["seconds"])
