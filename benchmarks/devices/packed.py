"""Files for devices, their zip archives, and `zaq-quantize pack`'s archives side by side.

    python -m benchmarks.devices.packed --tool executorch --task imagenet --data DATA --work FOLDER
    python -m benchmarks.devices.packed --table

Files are made as `benchmarks.devices` makes them, and taken from its folder if they are
there; ONNX files by torchao PT2E, with int8 weights and with dense codes, beside uniform 8-bit
weights of the same method (GPTQ). Each row is appended to ``benchmarks/results/packed.jsonl`` at
once; one that is there is not made again. The entropy is that of all PWLQ codes of a file, ranked
around zero, as one distribution: what any coder of single codes must take.
"""

from __future__ import annotations

import importlib
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.data.tasks import LOADERS, distil, foreign_images, load_task
from benchmarks.devices import run, tools
from benchmarks.processor import processor
from benchmarks.rows import RESULTS, append_row, command_line, read_rows
from benchmarks.tables import table
from zaq_plugin import archive
from zaq_plugin.archive import Codes
from zaq_plugin.archive.curves import LEAST

NEEDS = """Needs --data DIR and the tool. Takes a minute or two a network and tool, more where files
are made."""

OUT = RESULTS / "packed.jsonl"
KINDS: dict[str, tuple[str, ...]] = {"executorch": ("stock 8/8", "ours 5/8", "ours 4/8")}
KINDS["litert"] = KINDS["executorch"]
KINDS["onnx"] = ("ours 8/8", "ours 5/8", "ours 4/8", "ours 5/8 dense", "ours 4/8 dense")
SUFFIX = {"executorch": ".pte", "litert": ".tflite", "onnx": ".onnx"}
REPEATS = 20
Row = dict[str, Any]

LEAD = """# Archives of files for devices

Made by `benchmarks.devices.packed`. Bits are stored bits of a weight / bits of an activation; a
PWLQ weight of 5 stored bits has 4 MAC bits, one of 4 has 3. The first row of each part holds
uniform 8-bit weights; *of it* is a share of that file, zipped (deflate). *dense* files hold codes
in place of int8 weights, which ONNX's own operators unfold. *Entropy* is that of the PWLQ codes
alone, without levels, scales, biases and graph: what a coder of single codes cannot go below.
Unpacking makes the same file bit for bit; its time is the processor's, in one thread, hash
included, the median of 20. One file each, so no spread.
"""


def write_onnx(kind: str, model: nn.Module, images: Tensor, path: Path) -> None:
    """A file of torchao PT2E's model."""
    from zaq_plugin.strategies import Request, apply
    from zaq_plugin.student.host import find_host

    stored = int(kind.split()[1].split("/")[0])
    method = "gptq" if stored == 8 else "pwlq+gptq"
    example = (images[:2],)
    request = Request(stored, 8, example_inputs=example, images=images, host="pt2e")
    converted = find_host("pt2e").convert(apply(method, model, request).model)
    exporter = importlib.import_module("zaq_onnx").export
    exporter(converted, example, path, pack=kind.endswith("dense"), calibration=[images])


def entropy_bytes(path: Path) -> float:
    """Of the PWLQ codes of a file with int8 weights."""
    counts = np.zeros(256)
    for weight in archive.find_reader(path)(path):
        if isinstance(weight, Codes):
            return float("nan")
        rows = np.moveaxis(weight.integers, weight.axis, 0).reshape(weight.form[1], -1)
        if rows.shape[1] >= LEAST:
            for row in rows.astype(np.int64):
                ladder = np.union1d(row, [0])
                ranks = np.searchsorted(ladder, row) - np.searchsorted(ladder, 0)
                counts += np.bincount(ranks + 128, minlength=256)
    share = counts[counts > 0]
    return float(-(share * np.log2(share / share.sum())).sum() / 8)


def row_of(path: Path) -> Row:
    """Sizes, and how long unpacking takes."""
    with tempfile.TemporaryDirectory() as folder:
        target, back = Path(folder, "packed"), Path(folder, "back")
        packed = archive.pack(path, target)
        spent = []
        for _ in range(REPEATS):
            begin = time.process_time()
            archive.unpack(target, back)
            spent.append(1000 * (time.process_time() - begin))
        same = back.read_bytes() == path.read_bytes()
    row: Row = {"bytes": packed.file_bytes, "zipped": packed.zipped_bytes, "packed": packed.bytes}
    row |= {"coded": packed.coded, "integers": packed.integers, "same": same}
    return row | {"unpack_ms": statistics.median(spent), "processor": processor()}


def measure(tool: str, task_name: str, data: Path, work: Path, kinds: set[str]) -> None:
    """The rows of a network in a tool that are not there yet."""
    task = load_task(task_name, data)
    images: Tensor | None = None
    for kind in KINDS[tool]:
        if kind in kinds:
            continue
        path = work / f"{tool}_{task_name}_{kind.replace(' ', '_').replace('/', '_')}"
        if not path.exists():
            if images is None and task_name == "imagenet":
                images = foreign_images(data, task, run.CALIBRATION)
            elif images is None:
                images = distil(task.model, run.CALIBRATION, task.images.shape[2], steps=40)
            assert images is not None
            if tool == "onnx":
                write_onnx(kind, task.model, images, path)
            else:
                run.make(tool, kind, task.model, images, path)
        named = shutil.copy(path, path.with_suffix(SUFFIX[tool]))
        row = {"tool": tool, "task": task_name, "kind": kind, **row_of(Path(named))}
        if kind in ("ours 5/8", "ours 4/8"):
            row["entropy"] = entropy_bytes(Path(named))
        append_row(OUT, row)
        print(json.dumps(row), flush=True)


def page(rows: list[Row]) -> str:
    """The page."""
    parts = [LEAD]
    for tool, task in dict.fromkeys((row["tool"], row["task"]) for row in rows):
        own = [row for row in rows if (row["tool"], row["task"]) == (tool, task)]
        own.sort(key=lambda row: KINDS[tool].index(row["kind"]))
        base = own[0]["zipped"]
        lines = []
        for row in own:
            kilo = [f"{row[k] / 1000:,.1f}" for k in ("bytes", "zipped", "packed")]
            shares = [f"{row[k] / base:.3f}" for k in ("zipped", "packed")]
            entropy = f"{row['entropy'] / 1000:,.1f}" if "entropy" in row else "–"
            end = [entropy, f"{row['unpack_ms']:.0f}", "yes" if row["same"] else "**no**"]
            lines.append([row["kind"], *kilo, *shares, *end])
        heads = ["file", "kB", "zipped", "packed", "zipped, of it", "packed, of it"]
        heads += ["entropy of codes", "unpack, ms", "bit for bit"]
        title = f"\n## {task}, {SUFFIX[tool]}\n"
        parts.append("\n".join([title, *table(heads, lines, "l"), ""]))
    return "".join(parts)


def main() -> None:
    """Measure what is missing of a network in a tool, or write the page."""
    parser = command_line(__doc__, NEEDS)
    parser.add_argument("--table", action="store_true", help="write the page of the rows")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tool", choices=[*tools.TOOLS, "onnx"])
    parser.add_argument("--task", choices=sorted(LOADERS))
    parser.add_argument("--work", type=Path, help="where the files are kept")
    args = parser.parse_args()
    rows = read_rows(OUT)
    if args.table:
        OUT.with_suffix(".md").write_text(page(rows))
        return
    if None in (args.data, args.tool, args.task, args.work):
        parser.error("--data, --tool, --task and --work are needed")
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    same = [r for r in rows if (r["tool"], r["task"]) == (args.tool, args.task)]
    measure(args.tool, args.task, args.data, args.work, {row["kind"] for row in same})


if __name__ == "__main__":
    main()
