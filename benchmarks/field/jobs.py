"""What the field benchmark runs, and which rows its tables have: jobs, and what came of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.data.subjects import EFFORT, VALIDATION
from benchmarks.zero_shot.jobs import by_their_recipe, rows_of
from zaq_plugin.strategies import STRATEGIES
from zaq_plugin.strategies.compose import compose

BITS = {
    "cifar10": ("8/8", "6/8", "4/8", "4/4", "3/3", "2/4"),
    "imagenet": ("8/8", "6/8", "4/8"),
    "camvid": ("8/8", "6/8", "4/8"),
    "coco": ("8/8", "6/8", "4/8"),
    "lite0": ("8/8", "6/8", "5/8", "4/8", "4/4"),
    "lite1": ("4/8", "4/4"),
    "lite2": ("4/8", "4/4"),
}
LITE = ("lite0", "lite1", "lite2")
"""Models whose weights are in packages, and which ImageNet's validation images can measure."""
MODELS = tuple(BITS)
BITS |= {model + VALIDATION: BITS[model] for model in LITE}
"""Stored weight bits / activation bits of each model's columns."""
WIDER = {"cifar10": ("5/8", "5/4"), "imagenet": ("5/8",), "camvid": ("5/8",), "coco": ("5/8",)}
"""What PWLQ stores at four MAC bits, for the view at equal MAC bits."""
REAL_IMAGES = ("cifar10",)
"""Models with images that may calibrate."""
PEERS = {
    "nncf": ("plain", "best"),
    "torchao": ("plain", "best"),
    "aimet": ("plain", "best"),
    "brevitas": ("plain", "best"),
    "mct": ("plain", "best"),
}
COMPOSED = ("rq+bias-correction", "omse+bias-correction", "pwlq+gptq")
"""Compositions that stand in the tables beside the strategies themselves."""

Job = dict[str, Any]
Row = dict[str, Any]


def job(
    model: str,
    method: str,
    bits: str,
    seed: int = 0,
    *,
    levels: str = "auto",
    images: str = "synthetic",
    effort: float = 1.0,
) -> Job:
    """One job; every key is there, so that equal jobs are equal texts."""
    return {
        "model": model,
        "method": method,
        "levels": levels,
        "images": images,
        "bits": bits,
        "seed": seed,
        "effort": effort,
    }


def is_peer(method: str) -> bool:
    """Whether the method is another project's."""
    return method.split("/")[0] in PEERS


def parse(text: str) -> tuple[str, str, str | None]:
    """``name[@levels][:images]`` as name, levels, images (None: whatever the method can take).

    Raises:
        ValueError: If levels or images are unknown, or there is no such method.
    """
    name, _, images = text.partition(":")
    name, _, levels = name.partition("@")
    if levels not in ("", "auto", "uniform", "pwlq"):
        raise ValueError(f"levels of {text!r} must be uniform or pwlq; got {levels!r}")
    if images not in ("", "synthetic", "real"):
        raise ValueError(f"images of {text!r} must be synthetic or real; got {images!r}")
    if is_peer(name):
        recipes = PEERS[name.split("/")[0]]
        if name.partition("/")[2] not in recipes:
            raise ValueError(f"{name!r} has no such recipe; known are {', '.join(recipes)}")
    else:
        compose(name)  # refuses unknown names
    return name, levels or "auto", images or None


def default_methods(*, trains: bool = False) -> list[str]:
    """Every strategy, composition and peer; those that train only if asked for."""
    names = [n for n, s in STRATEGIES.items() if trains or not s.trains]
    names += COMPOSED
    names += ["pwlq@uniform"] if "pwlq" in STRATEGIES else []
    return names + [f"{peer}/{recipe}" for peer, recipes in PEERS.items() for recipe in recipes]


def sources(method: str, model: str) -> list[str]:
    """Which images a method can be given on a model."""
    if is_peer(method):
        return ["real"] if model in REAL_IMAGES else ["synthetic"]
    strategy = compose(method)
    kinds = [] if strategy.data == "real" else ["synthetic"]
    takes = strategy.data == "real" or (strategy.takes_images and strategy.data != "none")
    return [*kinds, "real"] if takes and model in REAL_IMAGES else kinds


def grid(
    models: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    bits: Sequence[str] | None = None,
    effort: float = 1.0,
) -> Iterator[Job]:
    """All jobs, seed by seed, so that an early stop leaves whole tables of few seeds."""
    for seed in seeds:
        for model in models:
            for text in methods:
                name, levels, source = parse(text)
                offered = sources(name, model)
                for images in offered if source is None else [i for i in offered if i == source]:
                    widths = bits or BITS[model]
                    if bits is None and name == "pwlq" and levels != "uniform":
                        widths = (*widths, *WIDER.get(model, ()))
                    for width in widths:
                        yield job(
                            model,
                            name,
                            width,
                            seed,
                            levels=levels,
                            images=images,
                            effort=effort * EFFORT[model],
                        )


def key(of: Job) -> str:
    """A job as a text that tells it from others."""
    return json.dumps(of, sort_keys=True)


def missing(
    jobs: Iterable[Job], rows: Sequence[dict[str, Any]], *, retry: bool = False
) -> list[Job]:
    """Jobs without a row; with ``retry`` also those whose row is an error."""
    done = {key(r["job"]) for r in rows if not (retry and "error" in r)}
    by_key = {key(j): j for j in jobs if key(j) not in done}
    return list(by_key.values())


# ---- rows ----------------------------------------------------------------------------------------

TAKEN_OVER = {"paper": "zaq-paper", "default": "zaq", "real": "zaq"}
"""Methods of `benchmarks.zero_shot` as strategies."""
BOTH = "PWLQ weights and activations"
"""Levels of rows whose activations are PWLQ, too; they multiply one bit narrower as well."""
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
