"""What `benchmarks.zero_shot` is asked to run: jobs, their settings, and the rows they leave."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.rows import read_rows
from zaq_plugin.pwlq import PWLQSpec, QuantSpec, UniformSpec
from zaq_plugin.zero_shot import ZeroShotConfig

DEFAULTS: dict[str, Any] = {
    "task": "cifar10",
    "method": "default",
    "bits": "4/4",
    "weights": "uniform",
    "activations": "uniform",
    "seed": 0,
    "input_bits": 8,
    "depthwise": "as-told",
    "correct": False,
    "image_size": 0,
    "set": {},
}
"""``activations``: ``pwlq`` gives them a PWLQ grid of the same stored bits, one MAC bit less;
``depthwise``: ``int8`` keeps depthwise layers at 8 uniform bits where that is smaller;
``correct``: bias correction on the calibration images; ``image_size``: of synthetic images, in
pixels, 0 for the network's own."""


def weight_spec(kind: str, stored_bits: int) -> QuantSpec:
    """A weight format by its stored bits.

    ``uniform`` is symmetric with the min-max clip, ``uniform-asymmetric`` has a zero point,
    ``uniform-mse`` the clip of least squared error beside it; ``pwlq`` has one breakpoint and one
    MAC bit less than it stores.
    """
    if kind == "uniform":
        return UniformSpec(bits=stored_bits)
    if kind == "uniform-asymmetric":
        return UniformSpec(bits=stored_bits, symmetry="asymmetric")
    if kind == "uniform-mse":
        return UniformSpec(bits=stored_bits, symmetry="asymmetric", clip="mse")
    if kind == "pwlq":
        return PWLQSpec(bits=stored_bits - 1)
    if kind == "pwlq-minmax":
        return PWLQSpec(bits=stored_bits - 1, policy="search")
    raise ValueError(f"unknown weights {kind!r}")


def activation_spec(kind: str, stored_bits: int) -> PWLQSpec | int:
    """An activation format by its stored bits: ``uniform``, or ``pwlq`` with one MAC bit less."""
    if kind not in ("uniform", "pwlq"):
        raise ValueError(f"unknown activations {kind!r}; known are 'uniform' and 'pwlq'")
    return stored_bits if kind == "uniform" else PWLQSpec(bits=stored_bits - 1)


def config_of(job: dict[str, Any]) -> ZeroShotConfig:
    """The job's settings."""
    preset = job["method"] if job["method"] in ("paper", "fast", "default") else "default"
    return ZeroShotConfig.preset(preset, seed=job["seed"], **job["set"])


def jobs_of(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The jobs that the command line or the job file asks for."""
    if args.jobs:
        lines = [line for line in Path(args.jobs).read_text().splitlines() if line.strip()]
        listed = [json.loads(line) for line in lines]
    else:
        changes = {}
        for item in args.set:
            name, _, value = item.partition("=")
            try:
                changes[name] = json.loads(value)
            except json.JSONDecodeError:
                changes[name] = value
        listed = [
            {
                "task": args.task, "method": method, "bits": bits, "weights": weights,
                "activations": args.activations, "seed": seed, "input_bits": args.input_bits,
                "depthwise": args.depthwise, "correct": args.correct,
                "image_size": args.image_size, "set": changes,
            }
            for seed in args.seeds
            for bits in args.bits
            for weights in args.weights
            for method in args.method
        ]  # fmt: skip
    full = []
    for job in listed:
        unknown = set(job) - set(DEFAULTS)
        if unknown:
            raise ValueError(f"unknown names in a job: {sorted(unknown)}; known: {list(DEFAULTS)}")
        full.append({**DEFAULTS, **job})
        config_of(full[-1])  # refuses unknown settings before anything runs
    return full


def rows_of(path: Path) -> list[dict[str, Any]]:
    """What a result file holds; what a job does not say has its default."""
    return [{**row, "job": {**DEFAULTS, **row["job"]}} for row in read_rows(path)]


def by_their_recipe(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows measured on test images by their task's recipe.

    Rows with changed settings (``set``) are another recipe, but where a task has no others.
    """
    jobs = [row["job"] for row in rows]
    plain = {job["task"] for job in jobs if job["method"] == "default" and not job["set"]}
    return [
        row
        for row, job in zip(rows, jobs, strict=True)
        if "error" not in row and "top1" in row and not (job["set"] and job["task"] in plain)
    ]
