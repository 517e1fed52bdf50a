"""Speed of this tree beside that of another one, in one run, alternating.

    git worktree add --detach ../before COMMIT
    python -m benchmarks.speed --before ../before --data DIR [--rows gptq ...] [--repeats 3]

Every measurement is a process of its own on one thread, and a line of ``results/speed.jsonl`` as
soon as it is there. Times are seconds of processor, so that other jobs on the machine count little.
``python -m benchmarks.speed --table`` writes the page from the lines and from notes.md.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.rows import RESULTS, append_row, command_line, read_rows
from benchmarks.tables import median_and_spread, table

HERE = Path(__file__).resolve().parent
TREE = HERE.parents[1]
TITLES = {
    "gptq": "`pwlq+gptq` 4/4, ResNet-20, 384 images at hand",
    "zaq": "`zaq` 4/4, ResNet-20, 256 images made",
    "zaq-2-4": "`zaq` 2/4, ResNet-20, 256 images made",
    "zaq-mobilenet": "`zaq` 4/8, MobileNetV1-0.25, 16 images of 224 px made",
    "zaq-memory": "`zaq` 4/8, ResNet-50, 64 images of 224 px, a step each: its memory",
    "images-cifar10": "64 images of 32 px from BatchNorm statistics (agreement: `pwlq` 4/8)",
    "images-imagenet": "16 images of 224 px, MobileNetV1-0.25 (agreement: `pwlq` 4/8)",
    "bias": "bias correction, ResNet-50 at 64 px, 16 images, 12 MiB for what waits",
    "closed-form": "closed form, 25.5 M weights (beside torch's fused operator)",
    "joint": "`joint`, 25.5 M weights (beside torch's fused operator)",
    "convert-pt2e": "conversion after calibration, PT2E, ResNet-18 (beside the stock one)",
    "convert-fx": "conversion after calibration, FX, ResNet-18 (beside the stock one)",
    "qat-pt2e": "training step of our fake-quantizers, PT2E, ResNet-18 (beside stock)",
    "qat-fx": "training step of our fake-quantizers, FX, ResNet-18 (beside stock)",
    "pack": "packing of an ONNX file, ResNet-50: all that `export` does behind the exporter",
}


HEADS = ["row", "what", "before", "now", "now / before", "agreement before, %", "now"]
HEADS += ["peak MB before", "now", "runs"]


def measure(tree: Path, row: str, data: Path, seed: int) -> dict[str, Any]:
    """One measurement of a tree's package."""
    paths = os.pathsep.join([str(tree), str(tree / "integrations")])
    done = subprocess.run(
        [sys.executable, str(HERE / "rows.py"), row, "--data", str(data), "--seed", str(seed)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        cwd=tree,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{row} in {tree} failed:\n{done.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def commit_of(tree: Path) -> str:
    """The commit that is measured."""
    process = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=tree, capture_output=True, text=True
    )
    return process.stdout.strip()


def page(lines: list[dict[str, Any]]) -> str:
    """The page."""
    by_row: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        by_row[line["row"]][line["build"]].append(line)
    out = [
        "# Speed",
        "",
        "Seconds of processor on one thread of a busy machine, medians (smallest to largest), two "
        "builds in turn:",
        "`python -m benchmarks.speed --before TREE --data DIR --rows ROW`. Where a yardstick "
        "is named, the",
        "figures in brackets are ratios to it, measured in the same process.",
        "",
    ]
    shown = []
    for row, builds in by_row.items():
        if not {"before", "now"} <= set(builds):
            continue
        before, now = builds["before"], builds["now"]
        ratio = _median(now, "cpu") / _median(before, "cpu")
        runs = f"{len(before)}, {len(now)}"
        shown.append(
            [
                f"`{row}`",
                TITLES[row],
                _span(before),
                _span(now),
                f"**{ratio:.2f}**",
                _list(before, "agreement"),
                _list(now, "agreement"),
                f"{_median(before, 'peak_mb'):.0f}",
                f"{_median(now, 'peak_mb'):.0f}",
                runs,
            ]
        )
    return "\n".join([*out, *table(HEADS, shown, "llr")]) + "\n"


def _median(lines: list[dict[str, Any]], key: str) -> float:
    return statistics.median(line[key] for line in lines)


def _span(lines: list[dict[str, Any]]) -> str:
    text = median_and_spread([line["cpu"] for line in lines])
    if "ratio" in lines[0]:
        text += f" [{_median(lines, 'ratio'):.2f}]"
    return text


def _list(lines: list[dict[str, Any]], key: str) -> str:
    return ", ".join(f"{line[key]:.2f}" for line in lines if key in line) or "–"


def main() -> None:
    """Measure, or write the page."""
    parser = command_line(__doc__)
    parser.add_argument("--before", type=Path, help="a checkout of the build to compare with")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rows", nargs="+", default=list(TITLES), choices=list(TITLES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the first repeat")
    parser.add_argument("--builds", nargs="+", default=["before", "now"])
    parser.add_argument("--table", action="store_true", help="write the page alone")
    args = parser.parse_args()
    file = RESULTS / "speed.jsonl"
    if not args.table:
        if args.before is None or args.data is None:
            parser.error("--before and --data are needed to measure")
        trees = {"before": args.before.resolve(), "now": TREE}
        for repeat in range(args.repeats):
            for row in args.rows:
                for build in args.builds:
                    tree, seed = trees[build], args.seed + repeat
                    figures = measure(tree, row, args.data.resolve(), seed)
                    line = {"row": row, "build": build, "seed": seed, "commit": commit_of(tree)}
                    append_row(file, {**line, **figures})
    (RESULTS / "speed.md").write_text(page(read_rows(file)) + (HERE / "notes.md").read_text())


if __name__ == "__main__":
    main()
