"""Files for devices, run: sizes, latencies, and what they answer on real images.

A tool's own int8 (its stock quantizer, 8-bit weights and activations) stands beside ours at 8, 5
and 4 stored bits, all with activations at 8 bits and calibrated on the same images, made from the
network's BatchNorm statistics. The images measured on calibrate nothing. Accuracy is that of the
files. Latencies are medians, one thread, one image at a time, the files taking turns; ours
at 8 stored bits and the stock file differ in nothing but numbers, so that their ratio tells how
quiet the machine was.

    python -m benchmarks.devices --tool executorch --task cifar10 --data DATA --work FOLDER

Each row is appended to ``benchmarks/results/devices.jsonl`` at once; one that is there is not made
again. A network that a tool's own quantizer fails on gets a row that says so. ``--tables`` writes
the page of the rows.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.data.images import shared_images
from benchmarks.data.subjects import (
    BATCH,
    EFFORT,
    SYNTHETIC,
    TITLES,
    Subject,
    load_subject,
)
from benchmarks.devices import tools
from benchmarks.devices.tables import tables
from benchmarks.field.jobs import job
from benchmarks.rows import RESULTS, append_row, command_line, read_rows
from benchmarks.timing import alternating
from zaq_plugin.errors import in_short

NEEDS = """Needs executorch or litert-torch, and --data DIR. Takes one to ten minutes a network and
tool."""

OUT = RESULTS / "devices.jsonl"
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


def measure(
    tool: str, name: str, data: Path, work: Path, rows: dict[str, Row], write: Write
) -> None:
    """The rows of a network in a tool that are not there yet; latencies last, of all files."""
    subject = load_subject(name, data)
    images = subject.images[:IMAGES]
    calibration = made_images(subject, work)
    with torch.no_grad():
        reference = torch.cat([subject.model(x) for x in images.split(BATCH[name])])
    runs = {}
    common = {"tool": tool, "task": name, "versions": tools.TOOLS[tool].versions()}
    for kind in KINDS:
        path = work / f"{tool}_{name}_{kind.replace(' ', '_').replace('/', '_')}"
        if kind in rows and path.exists():
            runs[kind] = tools.TOOLS[tool].run(path)
            continue
        if rows.get(kind, {}).get("refused"):
            continue
        begin = time.perf_counter()
        try:
            runs[kind], checked = make(tool, kind, subject.model, calibration, path)
        except ValueError as error:
            if not kind.startswith("stock"):
                raise
            write({**common, "kind": kind, "refused": in_short(error)})
            continue
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
    image = images[:1].contiguous()
    calls = {name: partial(run, image) for name, run in runs.items()}
    times = alternating(calls, REPEATS, warm=3)
    write({**common, "kind": LATENCY, "ms": {name: 1000 * t.wall for name, t in times.items()}})


def made_images(subject: Subject, cache: Path) -> Tensor:
    """The images that `zaq_executorch.quantize` and its like make where they get none; kept."""
    of = job(subject.name, "pwlq", "4/8", effort=EFFORT[subject.name])
    count = min(CALIBRATION, SYNTHETIC[subject.name])
    images, _ = shared_images(of, subject, cache, count=count)
    assert images is not None
    return images


def main() -> None:
    """Measure what is missing of a network in a tool, or write the page."""
    parser = command_line(__doc__, NEEDS)
    parser.add_argument("--data", type=Path, help="folder of models and images")
    parser.add_argument("--tool", choices=sorted(tools.TOOLS))
    parser.add_argument("--task", choices=sorted(TITLES))
    parser.add_argument("--work", type=Path, help="where the files are kept")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--tables", action="store_true", help="write the page of the rows and stop")
    args = parser.parse_args()
    if args.tables:
        args.out.with_suffix(".md").write_text(tables(read_rows(args.out)))
        return
    if None in (args.data, args.tool, args.task, args.work):
        parser.error("--data, --tool, --task and --work are needed")
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    same = [r for r in read_rows(args.out) if (r["tool"], r["task"]) == (args.tool, args.task)]
    by_kind = {row["kind"]: row for row in same}
    if LATENCY in by_kind:
        print("these rows are there")
        return

    def write(row: Row) -> None:
        append_row(args.out, row)
        print(json.dumps(row), flush=True)

    measure(args.tool, args.task, args.data, args.work, by_kind, write)
