"""The PWLQ paper's own comparisons on real weights: variants, breakpoints, bias correction.

    python -m benchmarks.field.orderings --data DIR --model imagenet cifar10

Weights at the paper's MAC bits b, activations at 8 bits, all layers, every format with and without
bias correction from activations. Formats are the paper's: float levels, symmetric, clip ``max|w|``,
the tail's first level on the breakpoint. One JSON line each; what is there is not run again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.data.images import shared_images
from benchmarks.data.subjects import TITLES, Subject, load_subject
from benchmarks.field.jobs import REAL_IMAGES, job
from benchmarks.rows import RESULTS, append_row, command_line, read_rows
from benchmarks.tables import Grid, Page
from zaq_plugin.observers import TopKMedianObserver
from zaq_plugin.ptq import calibrate, correct_bias, fold_batch_norm, quantized_tensors, simulate
from zaq_plugin.pwlq import PWLQSpec, QuantSpec, UniformSpec

NEEDS = """Needs --data DIR. Takes about a minute a format."""


def paper(bits: int, breakpoints: int = 1, *, overlapping: bool = False) -> PWLQSpec:
    """The paper's format with breakpoints by its search."""
    return PWLQSpec(
        bits,
        breakpoints=breakpoints,
        overlapping=overlapping,
        symmetry="symmetric",
        policy="search",
        grid="float",
        shared_endpoints=True,
    )


FORMATS: dict[str, Callable[[int], QuantSpec]] = {
    "uniform, min-max": lambda b: UniformSpec(b),
    "uniform, best clip": lambda b: UniformSpec(b, clip="mse"),
    "PWLQ, overlapping": lambda b: paper(b, overlapping=True),
    "PWLQ": lambda b: paper(b),
    "PWLQ, 2 breakpoints": lambda b: paper(b, 2),
    "PWLQ, 3 breakpoints": lambda b: paper(b, 3),
}


def measure(
    subject: Subject, name: str, bits: int, args: argparse.Namespace, expected: torch.Tensor
) -> list[dict[str, Any]]:
    """Two rows: without and with bias correction."""
    if subject.name in REAL_IMAGES:
        images, source = subject.calibration(0), "`train` images"
    else:
        synthetic, _ = shared_images(job(subject.name, "pwlq", "4/8"), subject, args.cache)
        assert synthetic is not None
        images, source = synthetic, "synthetic images"
    example = (images[:1],)
    folded = fold_batch_norm(subject.model, example)
    student = simulate(
        folded,
        FORMATS[name](bits),
        8,
        depthwise="as-told",
        observer=TopKMedianObserver,
        example_inputs=example,
    )
    calibrate(student, images.split(64))
    rows = []
    for corrected in (False, True):
        if corrected:
            correct_bias(student, images.split(64))
        outputs = subject.outputs(student, args.limit)
        tensors = quantized_tensors(student).values()
        rows.append(
            {
                "model": subject.name,
                "format": name,
                "bits": bits,
                "corrected": corrected,
                "stored_bits": next(iter(tensors)).stored_bits,
                "score": round(subject.score(outputs), 3),
                "agreement": subject.agreement(expected, outputs),
                "fp32": round(subject.score(expected), 3),
                "images": len(outputs),
                "calibration": f"{len(images)} {source}",
            }
        )
    return rows


def page(rows: list[dict[str, Any]]) -> Page:
    """A table for each model and width."""
    document = Page(
        "The PWLQ paper's comparisons on real weights", [(__doc__ or "").split("\n\n")[2]]
    )
    for model, bits in sorted({(r["model"], r["bits"]) for r in rows}):
        part = [r for r in rows if (r["model"], r["bits"]) == (model, bits)]
        one = part[0]
        document.parts.append((2, f"{TITLES[model]}, b = {bits}, float {one['fp32']:.2f} %"))
        document.parts.append(f"{one['images']} images measure, {one['calibration']} calibrate.")
        lines = []
        for name in FORMATS:
            pair = {r["corrected"]: r for r in part if r["format"] == name}
            if len(pair) == 2:
                first = pair[False]
                cells = [f"{pair[c][k]:.2f}" for k in ("score", "agreement") for c in (False, True)]
                lines.append([name, f"{bits} / {first['stored_bits']}", *cells])
        heads = ["format", "MAC / stored bits", "top-1, %", "top-1 with bias correction, %"]
        heads += ["agreement, %", "agreement with bias correction, %"]
        document.parts.append(Grid(heads, lines))
    return document


def main() -> None:
    """Run what is missing, write the page."""
    parser = command_line(__doc__, NEEDS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", nargs="+", default=["imagenet"], choices=("imagenet", "cifar10"))
    parser.add_argument("--bits", nargs="+", type=int, default=[4, 3])
    parser.add_argument("--limit", type=int)
    parser.add_argument("--cache", type=Path, default=Path(".field-cache"))
    parser.add_argument("--out", type=Path, default=RESULTS / "field_orderings.jsonl")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = read_rows(args.out)
    done = {(r["model"], r["format"], r["bits"]) for r in rows if r["corrected"]}
    for model in args.model:
        subject = load_subject(model, args.data)
        expected = subject.outputs(subject.model, args.limit)
        for bits in args.bits:
            for name in FORMATS:
                if (model, name, bits) in done:
                    continue
                for row in measure(subject, name, bits, args, expected):
                    append_row(args.out, row)
                    print(row, flush=True)
    args.out.with_suffix(".md").write_text(page(read_rows(args.out)).markdown())


if __name__ == "__main__":
    main()
