"""Latency of common networks on devices' runtimes: float, the tool's own int8, and ours.

    python -m benchmarks.devices.latency --work /tmp/latency [--network resnet18] [--tool litert]
    python -m benchmarks.devices.latency --tables

The networks of `benchmarks.deploy`, which has ONNX Runtime's and OpenVINO's latencies of them, and
EfficientNet-Lite0. Weights are random, which run as fast as trained ones: sizes and times are what
is asked here. Files are made once and kept; they take turns when times are taken, one image and one
thread. ``ours 8/8`` and the stock file differ in nothing but numbers: their ratio tells how quiet
the machine was. Each row is a JSON line the moment it is there; it is not made again.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.deploy.networks import TIMM, Network, network
from benchmarks.devices.tools import TOOLS
from benchmarks.processor import processor
from benchmarks.rows import RESULTS, append_row, command_line, read_rows
from benchmarks.tables import table
from benchmarks.timing import alternating

NEEDS = """Needs executorch or litert-torch. Takes one to five minutes a network and tool."""

NETWORKS = (*TIMM, "tf_efficientnet_lite0")
KINDS = {"float": 0, "stock 8/8": 0, "ours 8/8": 8, "ours 5/8": 5}
"""Stored bits of ours."""
AIM = 1.02
OUT = RESULTS / "devices_latency.jsonl"


def write(tool: str, kind: str, net: Network, path: Path) -> None:
    """A file of a network."""
    images, writer = torch.cat(net.batches), TOOLS[tool]
    example = (images[:1],)
    if kind == "float":
        writer.write_float(net.model, example, path)
    elif kind.startswith("stock"):
        writer.write_stock(net.model, example, list(images.split(1)), path)
    else:
        levels = "uniform" if KINDS[kind] == 8 else "pwlq"
        writer.write_ours(net.model, example, images, path, "rq", levels, KINDS[kind])


def measure(tool: str, name: str, work: Path, repeats: int) -> dict[str, Any]:
    """Sizes of a network's files, and their latencies, taken together."""
    net, paths = None, {kind: work / f"{tool}_{name}_{i}" for i, kind in enumerate(KINDS)}
    for kind, path in paths.items():
        if not path.exists():
            net = net or network(name, None)
            part = path.with_suffix(".part")
            write(tool, kind, net, part)
            part.rename(path)
    runs = {kind: TOOLS[tool].run(path) for kind, path in paths.items()}
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    calls = {kind: partial(run, image) for kind, run in runs.items()}
    times = alternating(calls, repeats, warm=3)
    blobs = {kind: path.read_bytes() for kind, path in paths.items()}
    return {
        "tool": tool,
        "network": name,
        "versions": TOOLS[tool].versions(),
        "processor": processor(),
        "ms": {kind: 1000 * t.processor for kind, t in times.items()},
        "bytes": {kind: len(blob) for kind, blob in blobs.items()},
        "zipped": {kind: len(zlib.compress(blob, 9)) for kind, blob in blobs.items()},
    }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """One table a tool."""
    lines = [
        "# Latency on devices' runtimes",
        "",
        "By `python -m benchmarks.devices.latency`. Bits are stored bits of a weight / bits of an",
        "activation; 5 stored bits of PWLQ have 4 MAC bits, and files hold int8 weights. *stock*",
        "is the tool's own quantizer. Milliseconds are the processor's, of one image and one",
        "thread; medians, the files taking turns. Random weights. `ours 8/8` has the stock file's",
        "operators and other numbers, so that what its ratio differs from one is the machine's",
        "noise, or layers that one of them leaves in float. ONNX Runtime's and OpenVINO's",
        "latencies of these",
        f"networks are in [deploy.md](deploy.md). `(!)`: above the aim, {AIM} of stock.",
    ]
    for tool in dict.fromkeys(row["tool"] for row in rows):
        own = [row for row in rows if row["tool"] == tool]
        versions = "; ".join(dict.fromkeys(row["versions"] for row in own))
        lines += ["", f"## {versions}", ""]
        heads = ["network", "float, kB", "stock 8/8, zipped kB", "ours 5/8, zipped kB"]
        heads += ["float, ms", "stock 8/8, ms", "ours 8/8, ms", "of stock", "ours 5/8, ms"]
        heads += ["of stock", "processor"]
        cells = []
        for row in own:
            ms, stock = row["ms"], row["ms"]["stock 8/8"]
            line = [row["network"], f"{row['bytes']['float'] / 1000:,.0f}"]
            line += [f"{row['zipped'][k] / 1000:,.0f}" for k in ("stock 8/8", "ours 5/8")]
            line += [f"{ms['float']:.2f}", f"{stock:.2f}"]
            for kind in ("ours 8/8", "ours 5/8"):
                ratio = ms[kind] / stock
                line += [f"{ms[kind]:.2f}", f"{ratio:.2f}" + " (!)" * (ratio > AIM + 0.005)]
            cells.append([*line, row["processor"]])
        lines += table(heads, cells)
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing, then write the table."""
    parser = command_line(__doc__, NEEDS)
    parser.add_argument("--network", choices=NETWORKS, nargs="+", default=[*NETWORKS])
    parser.add_argument("--tool", choices=tuple(TOOLS), nargs="+", default=[*TOOLS])
    parser.add_argument("--work", type=Path, help="where files are kept")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--tables", action="store_true", help="write the table and stop")
    args = parser.parse_args(argv)
    if not args.tables and args.work is None:
        parser.error("--work FOLDER is needed: files are kept there")
    torch.set_num_threads(1)
    done = {(row["tool"], row["network"]) for row in read_rows(args.out)}
    for name in [] if args.tables else args.network:
        for tool in args.tool:
            if (tool, name) not in done:
                args.work.mkdir(parents=True, exist_ok=True)
                row = measure(tool, name, args.work, args.repeats)
                append_row(args.out, row)
                print(row, flush=True)
    args.out.with_suffix(".md").write_text(markdown(read_rows(args.out)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
