"""Which rows the field's tables have: its own, and those of the zero-shot benchmark."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.field_jobs import job, key
from benchmarks.zero_shot.jobs import by_their_recipe, rows_of

TAKEN_OVER = {"paper": "zaq-paper", "default": "zaq", "real": "zaq"}
"""Methods of `benchmarks.zero_shot` as strategies."""
BOTH = "PWLQ weights and activations"
"""Levels of rows whose activations are PWLQ, too; they multiply one bit narrower as well."""
Row = dict[str, Any]
Line = tuple[str, str, str]


def line_of(row: Row) -> Line:
    """What a line of a table stands for: method, levels, data."""
    return row["job"]["method"], row["levels"], "real" if row["data"] == "real" else "free"


def mean_seconds(rows: Sequence[Row]) -> float | None:
    """Of the rows whose seconds count, if any do: on a CPU, and not ``--uncounted``."""
    here = [r["seconds"] for r in rows if _counts(r.get("machine", {}))]
    return statistics.fmean(here) if here else None


def _counts(machine: dict[str, Any]) -> bool:
    return machine.get("device", "cpu") == "cpu" and bool(machine.get("counted", True))


def rows_with(rows: Sequence[Row], also: Path | None = None) -> list[Row]:
    """The last row of each job, and those of its models taken over from the zero-shot benchmark.

    Of several efforts at the same widths the highest counts, for all seeds: means are of equals.
    Jobs that ask for the same in other words (PWLQ at two bits, which is uniform) count once.
    """
    models = {row["job"]["model"] for row in rows}
    others = [] if also is None else taken_over(also)
    every = [*(row for row in others if row["job"]["model"] in models), *rows]
    every.sort(key=lambda row: row["job"]["effort"])
    latest = list({_identity(row): row for row in every}.values())
    most: dict[tuple[str, ...], float] = {}
    for row in latest:
        cell = _identity(row)[:-1]
        most[cell] = max(most.get(cell, 0.0), row["job"]["effort"])
    return [r for r in latest if "error" in r or r["job"]["effort"] == most[_identity(r)[:-1]]]


def _identity(row: Row) -> tuple[str, ...]:
    if "error" in row:
        return ("error", key(row["job"]))
    of = row["job"]
    return (*line_of(row), of["model"], of["bits"], str(of["seed"]))


def taken_over(path: Path) -> list[Row]:
    """Rows of the zero-shot benchmark, whose protocol is the same, in this benchmark's form."""
    rows = []
    for row in by_their_recipe(rows_of(path)):
        old = row["job"]
        if old["input_bits"] != 8 or old["depthwise"] == "int8":
            continue
        if old["method"] not in TAKEN_OVER or old["weights"] not in ("uniform-mse", "pwlq"):
            continue
        real = old["method"] == "real"
        if real and old["task"] != "cifar10":
            continue
        levels = "pwlq" if old["weights"] == "pwlq" else "uniform"
        narrow = old["activations"] == "pwlq"
        stored = int(old["bits"].split("/")[0])
        rows.append(
            {
                "job": job(
                    old["task"],
                    TAKEN_OVER[old["method"]],
                    old["bits"],
                    old["seed"],
                    levels=levels,
                    images="real" if real else "synthetic",
                ),
                "metric": "top-1",
                "score": row["top1"],
                "agreement": row["agreement"],
                "fp32": row["fp32"],
                "mac_bits": stored - (levels == "pwlq"),
                "stored_bits": stored,
                "activation_mac_bits": int(old["bits"].split("/")[1]) - narrow,
                "levels": BOTH if narrow else levels,
                "data": "real" if real else "synthetic",
                "seconds": row["seconds"],
                "notes": [
                    "from zero_shot.jsonl; its seconds are wall time, images included",
                    *(f"{name} = {value}" for name, value in old["set"].items()),
                ],
            }
        )
    return rows
