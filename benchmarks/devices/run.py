"""Files for devices, run: sizes, latencies, and what they answer on real images.

A tool's own int8 (its stock quantizer, 8-bit weights and activations) stands beside ours at 8, 5
and 4 stored bits, all with activations at 8 bits and calibrated on the same images, made from the
network's BatchNorm statistics. The images measured on calibrate nothing. Accuracy is that of the
files. Latencies are medians, one thread, one image at a time, the files taking turns; ours
at 8 stored bits and the stock file differ in nothing but numbers, so that their ratio tells how
quiet the machine was.

    python benchmarks/devices/run.py --tool executorch --task cifar10 --data DATA --work FOLDER

Each row is appended to ``benchmarks/results/devices.jsonl`` at once; one that is there is not made
again. `benchmarks/devices/tables.py` makes the page.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.devices import tools  # noqa: E402
from benchmarks.field_tasks import (  # noqa: E402
    BATCH,
    EFFORT,
    SYNTHETIC,
    TITLES,
    Subject,
    load_subject,
)
from zaq_plugin.strategies import Request, synthetic_images  # noqa: E402
from zaq_plugin.strategies.compose import compose  # noqa: E402

OUT = ROOT / "benchmarks" / "results" / "devices.jsonl"
CALIBRATION, REPEATS, IMAGES = 32, 100, 1000
KINDS = ("stock 8/8", "ours 5/8", "ours 4/8", "float", "ours 8/8")
"""Stored bits of weights, bits of activations."""

LATENCY = "latency"
"""The row of all kinds' latencies: they were measured together."""

Run = Callable[[Tensor], Tensor]
Row = dict[str, Any]
Write = Callable[[Row], None]


def make(tool: str, kind: str, model: nn.Module, images: Tensor, path: Path) -> tuple[Run, Any]:
    """A file, what runs one image through it, and what verify said (None for the first two)."""
    example = (images[:1],)
    module = tools.TOOLS[tool]
    if kind == "float":
        return module.write_float(model, example, path), None
    if kind.startswith("stock"):
        return module.write_stock(model, example, list(images.split(1)), path), None
    stored = int(kind.split()[1].split("/")[0])
    method, levels = ("gptq", "uniform") if stored == 8 else ("pwlq+gptq", "pwlq")
    return module.write_ours(model, example, images, path, method, levels, stored)


def medians(runs: dict[str, Run], image: Tensor) -> dict[str, float]:
    """Milliseconds; the files take turns."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS + 3):
        for name, run in runs.items():
            begin = time.perf_counter()
            run(image)
            spent[name].append(time.perf_counter() - begin)
    return {name: 1000 * statistics.median(values[3:]) for name, values in spent.items()}


def measure(
    tool: str, name: str, data: Path, work: Path, rows: dict[str, Row], write: Write
) -> None:
    """The rows of a network in a tool that are not there yet; latencies last, of all files."""
    subject = load_subject(name, data)
    images = subject.images[:IMAGES]
    calibration = made_images(subject, work / f"{name}_images.safetensors")
    with torch.no_grad():
        reference = torch.cat([subject.model(x) for x in images.split(BATCH[name])])
    runs = {}
    common = {"tool": tool, "task": name, "versions": tools.TOOLS[tool].versions()}
    for kind in KINDS:
        path = work / f"{tool}_{name}_{kind.replace(' ', '_').replace('/', '_')}"
        if kind in rows and path.exists():
            runs[kind] = tools.TOOLS[tool].run(path)
            continue
        begin = time.perf_counter()
        runs[kind], checked = make(tool, kind, subject.model, calibration, path)
        seconds = time.perf_counter() - begin
        answers = torch.cat([runs[kind](x[None].contiguous()) for x in images])
        blob = path.read_bytes()
        row = {
            **common,
            "kind": kind,
            "bytes": len(blob),
            "zipped": len(zlib.compress(blob, 9)),
            "metric": subject.metric,
            "score": subject.score(answers),
            "agreement": subject.agreement(reference, answers),
            "float_score": subject.score(reference),
            "images": len(images),
            "seconds": seconds,
            "verified": None if checked is None else checked.ok,
            "error": None if checked is None else [checked.error, checked.tolerance],
        }
        if kind not in rows:
            write(row)
    write({**common, "kind": LATENCY, "ms": medians(runs, images[:1].contiguous())})


def made_images(subject: Subject, path: Path) -> Tensor:
    """The images that `zaq_executorch.quantize` and its like make where they get none; kept."""
    if not path.exists():
        request = Request(
            4,
            8,
            example_inputs=(subject.images[:1],),
            mean=tuple(subject.mean),
            std=tuple(subject.std),
            synthetic_count=min(CALIBRATION, SYNTHETIC[subject.name]),
            effort=EFFORT[subject.name],
        )
        images = synthetic_images(compose("pwlq"), subject.model, request)
        assert images is not None
        save_file({"images": images.contiguous()}, path)
    return load_file(path)["images"]


def main() -> None:
    """See the file's first lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tool", choices=sorted(tools.TOOLS), required=True)
    parser.add_argument("--task", choices=sorted(TITLES), required=True)
    parser.add_argument("--work", type=Path, required=True, help="where the files are kept")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    lines = args.out.read_text().splitlines() if args.out.exists() else []
    rows = [r for r in map(json.loads, lines) if (r["tool"], r["task"]) == (args.tool, args.task)]
    by_kind = {row["kind"]: row for row in rows}
    if LATENCY in by_kind:
        print("these rows are there")
        return

    def write(row: Row) -> None:
        with args.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)

    measure(args.tool, args.task, args.data, args.work, by_kind, write)


if __name__ == "__main__":
    main()
