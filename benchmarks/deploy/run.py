"""Shipping a network: file sizes, load times, latencies and accuracy under stock runtimes.

`benchmarks.deploy.prepare` makes the files, which takes long and may run on a busy machine. This
takes the times, and wants a quiet one; it says how quiet it was. Runs that are to be compared
alternate; medians of the processor's time are reported, which others on the machine lengthen less
than time on the clock (that is in the JSON lines, too). Networks of timm have random weights, which
run as fast as trained ones; those of the data folder are real, and so is their accuracy.

    python -m benchmarks.deploy.prepare --work /tmp/deploy --data ../data
    python -m benchmarks.deploy --work /tmp/deploy --out benchmarks/results/deploy.md

Each network's results are appended to a file of JSON lines next to the table at once; a run that
was stopped goes on with the next network.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import zaq_onnx
from benchmarks.deploy.floor import floor_files
from benchmarks.deploy.networks import BITS, DATA, RUNTIMES, TIMM, Facts, facts_of
from benchmarks.deploy.tables import tables
from benchmarks.rows import append_row, command_line, read_rows
from benchmarks.timing import Times, alternating

NEEDS = """Needs what benchmarks.deploy.prepare made, and a quiet machine. Takes about a minute a
network."""


TIMED = ("fp32", "stock", "int8_5", "packed5")
"""Files whose latency is taken; all are loaded."""

FLOOR = "resnet18"
"""The network with which the least that a load can take is measured."""


def measure(folder: Path, repeats: int, loads: int, threads: int) -> Facts:
    """A network's facts and its times.

    Raises:
        ValueError: it was not prepared.
    """
    row = facts_of(folder)
    if row is None:
        raise ValueError(
            f"{folder}: not prepared; run `python -m benchmarks.deploy.prepare` first."
        )
    begin, processor = time.perf_counter(), time.process_time()
    row |= {"threads": threads, "processors": os.cpu_count(), "busy": [os.getloadavg()[0]]}
    image = np.load(folder / "image.npy")
    row["unpack"] = unpacking(folder)
    for runtime in RUNTIMES:
        ready: dict[str, Any] = {}
        for name in row["bytes"]:
            try:
                ready[name] = runtime.load(folder / f"{name}.onnx", threads=threads)
            except ValueError as error:
                row.setdefault(f"{runtime.name}_errors", {})[name] = str(error)[:200]
        again = {n: partial(runtime.load, folder / f"{n}.onnx", threads=threads) for n in ready}
        _note(row, f"{runtime.name}_load", alternating(again, loads, warm=0))
        runs = {n: partial(runtime.run, m, (image,)) for n, m in ready.items() if n in TIMED}
        _note(row, f"{runtime.name}_latency", alternating(runs, repeats))
    if row["name"] == FLOOR:
        row["floors"] = floors(folder / "int8_4.onnx", loads, threads)
    row["busy"].append(os.getloadavg()[0])
    row["seconds"] = round(time.perf_counter() - begin, 1)
    row["processor_seconds"] = round(time.process_time() - processor, 1)
    return row


def unpacking(folder: Path) -> dict[str, float]:
    """Seconds that `zaq_onnx.unpack` takes, checks included: what an installer would spend once."""
    seconds = {}
    with tempfile.TemporaryDirectory() as target:
        for stored in BITS:
            begin = time.process_time()
            zaq_onnx.unpack(folder / f"packed{stored}.onnx", Path(target, "int8.onnx"))
            seconds[str(stored)] = time.process_time() - begin
    return seconds


def floors(source: Path, loads: int, threads: int) -> dict[str, dict[str, float]]:
    """By runtime and chain: the time to load weights that the chain unfolds, of int8's."""
    shares = {}
    with tempfile.TemporaryDirectory() as folder:
        files = {"int8": source, **floor_files(source, Path(folder))}
        for runtime in RUNTIMES:
            calls = {n: partial(runtime.load, path, threads=threads) for n, path in files.items()}
            times = alternating(calls, loads)
            whole = times.pop("int8").processor
            shares[runtime.name] = {n: t.processor / whole for n, t in times.items()}
    return shares


def _note(row: Facts, key: str, times: Mapping[str, Times]) -> None:
    row[key] = {name: value.processor for name, value in times.items()}
    row[f"{key}_wall"] = {name: value.wall for name, value in times.items()}


def main() -> None:
    """Measures what is not measured yet, and writes the table after each network."""
    parser = command_line(__doc__, NEEDS)
    parser.add_argument(
        "--work", type=Path, required=True, help="what benchmarks.deploy.prepare made"
    )
    parser.add_argument("--models", nargs="*", help="networks; all that are prepared by default")
    parser.add_argument("--repeats", type=int, default=31, help="counted runs of each latency")
    parser.add_argument("--loads", type=int, default=5, help="loads of each file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="Markdown file to write, besides printing")
    options = parser.parse_args()
    prepared = [n for n in (*TIMM, *DATA) if facts_of(options.work / n) is not None]
    names = options.models or prepared
    if not names:
        parser.error(
            f"nothing is prepared in {options.work}; run `python -m benchmarks.deploy.prepare`."
        )
    lines = options.out.with_suffix(".jsonl") if options.out else Path(tempfile.mkdtemp(), "rows")
    console = Console(stderr=True)
    for number, name in enumerate(names):
        if any(row["name"] == name for row in read_rows(lines)):
            continue
        with console.status(f"{name} ({number + 1} of {len(names)})"):
            row = measure(options.work / name, options.repeats, options.loads, options.threads)
        append_row(lines, row)
        console.print(f"{name}: {row['seconds']} s")
        if options.out:
            options.out.write_text(tables(read_rows(lines)))
    print(tables(read_rows(lines)))
