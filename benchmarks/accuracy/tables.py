"""What the accuracy benchmark measures, and the tables that tell it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.rows import read_records
from benchmarks.tables import table
from zaq_plugin.pwlq import PWLQSpec, QuantSpec, UniformSpec
from zaq_plugin.report import ResultRow
from zaq_plugin.report.tables import results_markdown

CALIBRATION = {"cifar10": 512, "imagenet": 128}
TITLES = {"cifar10": "CIFAR-10 ResNet-20", "imagenet": "ImageNet MobileNetV1 0.25"}
INTRODUCTION = """Written by `python -m benchmarks.accuracy --data DIR`. Each method appears at its
MAC bits; a uniform grid also at one bit more, which is what PWLQ *stores*: compare methods at equal
stored bits, or at equal MAC bits where the multiplier counts. A top-1 difference below about one
standard error of the evaluation (0.5 points for 5,000 images, 2.5 for 400) means nothing by itself.
PWLQ's rows are older than `overflow="pairs"`, which is the default now and costs less than 0.1 dB
up to 4 MAC bits, 0.3 and 0.8 dB at 5 and 6 ([overflow.md](overflow.md)).
"""
SOURCE = {"cifar10": "`train` images", "imagenet": "images distilled from BatchNorm statistics"}


def _pwlq(bits: int, **options: object) -> PWLQSpec:
    grid = "int8" if bits <= 6 else "float"
    return PWLQSpec(bits=bits, grid=grid, **options)  # type: ignore[arg-type]


METHODS: dict[str, Callable[[int], QuantSpec]] = {
    "uniform min-max, symmetric": lambda b: UniformSpec(b),
    "uniform min-max, asymmetric": lambda b: UniformSpec(b, "asymmetric"),
    "uniform clipped, symmetric": lambda b: UniformSpec(b, clip="mse"),
    "uniform clipped, asymmetric": lambda b: UniformSpec(b, "asymmetric", "mse"),
    "PWLQ closed form, symmetric": lambda b: _pwlq(
        b, symmetry="symmetric", policy="gaussian", shared_endpoints=True
    ),
    "PWLQ search, symmetric": lambda b: _pwlq(b, symmetry="symmetric", policy="search"),
    "PWLQ search, asymmetric": lambda b: _pwlq(b, policy="search"),
    "PWLQ joint, symmetric": lambda b: _pwlq(b, symmetry="symmetric"),
    "PWLQ joint, asymmetric": lambda b: _pwlq(b),
}


@dataclass(frozen=True)
class Cell:
    """One configuration to measure."""

    task: str
    method: str
    weight_bits: int
    activation_bits: int
    observer: str
    depthwise: str
    seed: int
    images: int
    corrected: bool = False

    @property
    def spec(self) -> QuantSpec:
        """The grid of the weights."""
        return METHODS[self.method](self.weight_bits)


@dataclass(frozen=True)
class Measured:
    """What a cell gave; percentages, bytes, dB, nats, seconds."""

    top1: float
    agreement: float
    divergence: float
    held_out_divergence: float
    size_bytes: int
    sqnr_db: float
    seconds: float
    float_top1: float
    float_bytes: int


def read_lines(path: Path) -> dict[Cell, Measured]:
    """Results of earlier runs."""
    return read_records(path, Cell, Measured)


def to_rows(done: dict[Cell, Measured], task: str, images: int) -> list[ResultRow]:
    """One row per configuration of a task, averaged over seeds, with the float model first."""
    groups: dict[Cell, list[tuple[int, Measured]]] = {}
    for cell, measured in done.items():
        if (cell.task, cell.images) == (task, images):
            key = replace(cell, seed=0)
            groups.setdefault(key, []).append((cell.seed, measured))
    rows = []
    for cell, group in groups.items():
        top1 = [m.top1 for _, m in group]
        rows.append(
            ResultRow(
                cell.method + (" + bias correction" if cell.corrected else ""),
                cell.spec.mac_bits,
                cell.spec.stored_bits,
                cell.activation_bits,
                cell.activation_bits,
                group[0][1].size_bytes,
                statistics.fmean(m.sqnr_db for _, m in group),
                statistics.fmean(top1),
                statistics.fmean(m.agreement for _, m in group),
                len(group),
                statistics.stdev(top1) if len(group) > 1 else None,
                protocol(cell, sorted(seed for seed, _ in group)),
            )
        )
    return [*float_row(groups), *sorted(rows, key=_order)]


def float_row(groups: dict[Cell, list[tuple[int, Measured]]]) -> list[ResultRow]:
    """The float model's row, if anything was measured."""
    for group in groups.values():
        first = group[0][1]
        size, top1 = first.float_bytes, first.float_top1
        return [ResultRow("FP32", 32, 32, 32, 32, size, None, top1, 100.0)]
    return []


def _order(row: ResultRow) -> tuple[object, ...]:
    """Kind of run, then wide activations to narrow ones, then stored bits."""
    kind = section(row)
    return (kind, -row.activation_mac_bits, -row.weight_stored_bits, row.method)


def section(row: ResultRow) -> str:
    """Rows that differ in their calibration or in their depthwise layers stand apart."""
    depthwise = row.protocol.get("depthwise")
    calibration = str(row.protocol.get("calibration", ""))
    return calibration + (f"; depthwise layers: {depthwise}" if depthwise else "")


def protocol(cell: Cell, seeds: list[int]) -> dict[str, object]:
    """What the numbers of a row mean."""
    ranges = {"minmax": "min-max", "topk": "top-10 median, batches of 4"}[cell.observer]
    facts: dict[str, object] = {
        "first_last": "as all layers; the network's input at 8 bits",
        "residual_adds": "float",
        "granularity": "weights per output channel, activations per tensor",
        "symmetry": "weights as named, activations asymmetric",
        "calibration": f"{CALIBRATION[cell.task]} {SOURCE[cell.task]}, {ranges}",
        "evaluation": f"{cell.images} images, used for nothing else",
        "seed": seeds,
    }
    if cell.depthwise != "none":
        facts["depthwise"] = "uniform int8" if cell.depthwise == "int8" else "as all layers"
    return facts


def pivot(
    done: dict[Cell, Measured], by: str, value: Callable[[Measured], float], places: int = 2
) -> str:
    """One line per method, one column per width; a number is the mean over seeds.

    Args:
        done: Results of one task and one kind of run.
        by: ``stored`` or ``MAC``: which bits of the weights name the column.
        value: What to show of a result.
        places: Digits behind the point.
    """
    means: dict[tuple[str, bool], dict[tuple[int, int], list[float]]] = {}
    for cell, measured in done.items():
        bits = cell.spec.stored_bits if by == "stored" else cell.spec.mac_bits
        line = means.setdefault((cell.method, cell.corrected), {})
        line.setdefault((bits, cell.activation_bits), []).append(value(measured))
    columns = sorted({c for line in means.values() for c in line}, reverse=True)
    shared = {c: sum(c in line for line in means.values()) for c in columns}
    columns = [c for c in columns if shared[c] * 4 >= max(shared.values())]  # no lonely widths
    names = [f"W{w}A{a}" for w, a in columns]
    text = []
    for method in METHODS:
        for corrected in (False, True):
            line = means.get((method, corrected), {})
            if not any(c in line for c in columns):
                continue
            cells = [
                f"{statistics.fmean(line[c]):.{places}f}" if c in line else "" for c in columns
            ]
            name = method + (" + bias correction" if corrected else "")
            text.append([name, *cells])
    return "\n".join(table(["method", *names], text))


def summaries(done: dict[Cell, Measured], source: str) -> list[str]:
    """Small tables: equal stored bits, equal MAC bits, and one that touches no test image."""
    return [
        "#### Top-1 (%) at equal stored bits",
        "",
        pivot(done, "stored", lambda m: m.top1),
        "",
        "#### Agreement with FP32 (%) at equal stored bits",
        "",
        pivot(done, "stored", lambda m: m.agreement),
        "",
        "#### Top-1 (%) at equal MAC bits",
        "",
        pivot(done, "MAC", lambda m: m.top1),
        "",
        f"#### KL divergence from FP32 (nats) on other {source}, equal stored bits",
        "",
        pivot(done, "stored", lambda m: m.held_out_divergence, 4),
    ]


def markdown(done: dict[Cell, Measured]) -> str:
    """All results as one Markdown page: per task and kind of run summaries and the full table."""
    text = ["# Accuracy of weight formats", "", INTRODUCTION]
    for task, images in sorted({(cell.task, cell.images) for cell in done}):
        rows = to_rows(done, task, images)
        text += [f"## {TITLES[task]}, FP32 {rows[0].top1:.2f} %"]
        for kind in sorted({section(row) for row in rows[1:]}):
            chosen = [row for row in rows[1:] if section(row) == kind]
            part = {
                c: m
                for c, m in done.items()
                if (c.task, c.images, _kind(c)) == (task, images, kind)
            }
            text += ["", f"### {kind}", "", *summaries(part, SOURCE[task])]
            text += ["", "#### All rows", "", results_markdown([rows[0], *chosen])]
    return "\n".join(text) + "\n"


def _kind(cell: Cell) -> str:
    row = ResultRow("", 32, 32, 32, 32, protocol=protocol(cell, [0]))
    return section(row)
