"""The page of `benchmarks.zero_shot`: its rows in Markdown, mean and spread over seeds."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from benchmarks.tables import mean_and_spread, table
from benchmarks.zero_shot.jobs import by_their_recipe

METHODS = {
    "before": "before",
    "paper": "`paper`",
    "fast": "`fast`",
    "default": "`default`",
    "real": "real images",
}
FORMATS = {
    "uniform": "uniform, min-max",
    "uniform-asymmetric": "uniform, min-max, asymmetric",
    "uniform-mse": "uniform, best clip",
    "pwlq": "PWLQ",
    "pwlq-minmax": "PWLQ, clip at the largest weight",
}
TITLES = {"cifar10": "CIFAR-10 ResNet-20", "imagenet": "ImageNet MobileNetV1-0.25"}
Row = dict[str, Any]


def weight_widths(job: Row) -> str:
    """``MAC / stored`` bits of the weights."""
    stored = int(job["bits"].split("/")[0])
    mac = stored - 1 if job["weights"].startswith("pwlq") else stored
    return f"{mac} / {stored}"


def results(rows: Iterable[Row]) -> list[str]:
    """A table for each task: a line for each format and widths, a column for each method.

    Only rows by their task's recipe; those without test images are left to `ablation`.
    """
    cells: dict[tuple[Any, ...], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in by_their_recipe(list(rows)):
        job = row["job"]
        key = tuple(
            job[n] for n in ("task", "bits", "weights", "input_bits", "depthwise", "activations")
        )
        cells[key][job["method"]].append(row)
    lines: list[str] = []
    for task in dict.fromkeys(key[0] for key in cells):
        mine = {key: cell for key, cell in cells.items() if key[0] == task}
        used = [m for m in METHODS if any(m in cell for cell in mine.values())]
        float_top1 = next(iter(next(iter(mine.values())).values()))[0]["fp32"]
        lines += [f"## {TITLES.get(task, task)}, float {float_top1:.2f} %", ""]
        head = ["weights", "MAC / stored bits", "activations", "input"]
        head += [METHODS[m] for m in used]
        head += ["points below float", "agreement", "seeds of `default`", "seconds"]
        shown = [_line(key, mine[key], used) for key in sorted(mine, key=_order)]
        lines += table(head, shown, "llllr")
        lines.append("")
    return lines


def _order(key: tuple[Any, ...]) -> tuple[Any, ...]:
    weight, activation = (int(b) for b in key[1].split("/"))
    return (-weight, -activation, key[3] == 0, key[4], key[2], key[5])


def _line(key: tuple[Any, ...], cell: dict[str, list[Row]], used: list[str]) -> list[str]:
    _, bits, weights, input_bits, depthwise, activations = key
    stored = int(bits.split("/")[1])
    mac = stored - 1 if activations == "pwlq" else stored
    any_row = next(iter(cell.values()))[0]
    shown = [
        FORMATS.get(weights, weights) + (", depthwise 8" if depthwise == "int8" else ""),
        weight_widths(any_row["job"]),
        f"{'PWLQ' if activations == 'pwlq' else 'uniform'}, {mac} / {stored}",
        str(input_bits or stored),
    ]
    shown += [mean_and_spread([row["top1"] for row in cell.get(m, [])]) for m in used]
    ours = cell.get("default", [])
    drops = [row["fp32"] - row["top1"] for row in ours]
    shown += [
        mean_and_spread(drops),
        mean_and_spread([row["agreement"] for row in ours]),
        str(len(ours)),
        mean_and_spread([row["seconds"] for row in ours], 0),
    ]
    return shown


def ablation(rows: Iterable[Row]) -> list[str]:
    """What each switch does: agreement with the float model on ``train`` images, no labels.

    One table for training without reconstruction, one for reconstruction.
    """
    good = [row for row in rows if "error" not in row and "train_agreement" in row]
    lines = ["## What each setting does", ""] if good else []
    for reconstructed in (True, False):
        group = [r for r in good if r["job"]["set"].get("reconstruct", True) is reconstructed]
        lines += _changes(group) if group else []
    return lines


def _changes(rows: list[Row]) -> list[str]:
    """A table of rows that differ in a setting each."""
    first = rows[0]["job"]
    common = {
        name: value
        for name, value in first["set"].items()
        if all(row["job"]["set"].get(name) == value for row in rows)
    }
    settings = ", ".join(f"{k} = {json.dumps(v)}" for k, v in common.items())
    lines = [
        f"{first['bits']} (stored weight / activation bits), {FORMATS[first['weights']]}, seed "
        f"{first['seed']}{', ' + settings if settings else ''}.",
        "",
    ]
    heads = ["changed", "divergence, validation", "on `train`", "agreement on `train`, %"]
    heads += ["kept state", "seconds"]
    shown = []
    for row in rows:
        changed = {k: v for k, v in row["job"]["set"].items() if k not in common}
        what = ", ".join(f"{k} = {json.dumps(v)}" for k, v in changed.items()) or "nothing"
        best = [v for v in row.get("verdicts", []) if v[0] == row.get("best")]
        divergence = f"{best[0][1]:.3f}" if best else "–"
        cells = [what, divergence, divergence_on(row), f"{row['train_agreement']:.2f}"]
        shown.append([*cells, row.get("best") or "–", f"{row['seconds']:.0f}"])
    return [*lines, *table(heads, shown, "lrrrlr"), ""]


def divergence_on(row: Row) -> str:
    """Divergence on ``train`` images; early rows have none."""
    return f"{row['train_divergence']:.4f}" if "train_divergence" in row else "–"


def layer_weights(rows: Iterable[Row]) -> list[str]:
    """λ of the taps at the end of the runs that used them (``paper``)."""
    heads: list[str] = []
    shown = []
    for row in rows:
        job, weights = row["job"], row.get("layer_weights")
        if job["method"] != "paper" or not weights or job["set"]:
            continue
        heads = heads or ["bits", "seed", *weights]
        values = [f"{value:.3f}" for value in weights.values()]
        shown.append([job["bits"], str(job["seed"]), *values])
    title = "## λ, the weights of the taps, at the end of `paper`"
    return [title, "", *table(heads, shown, "llr"), ""] if shown else []
