"""A small zoo with real weights and real images, and what a run of it costs.

    zaq-quantize run --model benchmarks.data.tasks:mobilenet_v1_025 --eval DIR/imagenet/images \\
        --checkpoint DIR/imagenet/mobilenet_v1_025.safetensors
    python -m benchmarks.zoo [--work DIR] [--jobs 1 2]

The first line measures ImageNet's MobileNetV1 at width 0.25 on its images; nothing but its weights
goes in. The second measures throughput and memory: the same models with random weights and small
images, with one worker and with two.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.rows import command_line
from benchmarks.tables import table

NEEDS = """Needs timm; no data. Takes half a minute a model for each number of workers."""

MODELS = (
    "resnet18",
    "mobilenetv2_100",
    "efficientnet_b0",
    "vit_tiny_patch16_224",
    "convnext_atto",
    "regnety_002",
    "ghostnet_100",
    "mobilenetv3_small_100",
)


def measure(models: tuple[str, ...], work: Path, jobs: int) -> tuple[float, float, list[int]]:
    """One run of all models.

    Returns:
        Wall-clock seconds, processor seconds of all workers, and each one's peak memory in bytes.
    """
    from zaq_timm.zoo.runner import Plan, run_settings
    from zaq_timm.zoo.settings import Settings

    settings = Settings(
        models=models, input_size="3x64x64", jobs=jobs, restart=True, out=str(work), quiet=True
    )
    begin = time.perf_counter()
    rows = run_settings(settings, Plan.make(settings)).rows.values()
    seconds = time.perf_counter() - begin
    wrong = [row["key"] for row in rows if row["status"] != "done"]
    if wrong:
        raise SystemExit(f"not done: {', '.join(wrong)}")
    measured = [row["measured"] for row in rows]
    return seconds, sum(t["cpu_seconds"] for t in measured), [t["peak_bytes"] for t in measured]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, and prints a Markdown table."""
    parser = command_line(__doc__, NEEDS)
    parser.add_argument("--work", type=Path, default=Path("zaq-zoo"), help="scratch folder")
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    args = parser.parse_args(argv)
    models = tuple(args.models)
    print(f"{len(models)} models, 64 x 64 pixels: {', '.join(models)}\n")
    heads = ["workers", "seconds", "models an hour", "processor seconds a model"]
    lines = []
    for jobs in args.jobs:
        seconds, busy, peaks = measure(models, args.work / f"jobs-{jobs}", jobs)
        hour = 3600 * len(models) / seconds
        memory = f"{sum(peaks) / len(peaks) / 1e6:.0f}, largest {max(peaks) / 1e6:.0f}"
        each = busy / len(models)
        lines.append([str(jobs), f"{seconds:.0f}", f"{hour:.0f}", f"{each:.0f}", memory])
    print("\n".join(table([*heads, "peak memory, MB"], lines, "r")))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
