"""What the field's methods make, as the file that ships: simulated student against ONNX Runtime.

    python -m benchmarks.field.onnx --data DIR

Each student of `benchmarks.field` (same images, same seed) is exported with the options of
``zaq-quantize run --strategy NAME --export onnx``: int8 weights packed to their stored bits, 8-bit
ranges for what the student leaves in float between layers, weights on which kernels of processors
without VNNI cannot saturate. ONNX Runtime then answers on all images. (The command also keeps
depthwise layers at eight bits unless ``--depthwise as-told`` says otherwise; the field does not.)
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.data.images import request_for, shared_images
from benchmarks.data.subjects import BATCH, EFFORT, TITLES, Subject, load_subject
from benchmarks.field.jobs import LITE, MODELS, job, key
from benchmarks.field.run import Measure
from benchmarks.field.tables import line_of, method_name
from benchmarks.rows import RESULTS, append_row, command_line, read_rows
from benchmarks.tables import Grid, Page
from zaq_plugin.strategies import apply

NEEDS = """Needs --data DIR and onnxruntime. Takes one to ten minutes a network."""

OUT = RESULTS / "field_onnx.jsonl"
AS_COMMITTED = {"cifar10": 1.0, "imagenet": 1.0, "camvid": 0.25, "coco": 1.0}
"""What `field.py` was given as ``--effort`` for the committed rows, times `EFFORT`."""

FIGURES = ("score", "agreement")


def answers(path: Path, subject: Subject) -> Tensor:
    """ONNX Runtime's first output on all images, on one thread."""
    from zaq_onnx.runtimes import ort_session, run_ort

    session = ort_session(path, threads=1)
    parts = subject.images.split(BATCH[subject.name])
    return torch.cat([torch.from_numpy(run_ort(session, (part,))[0]) for part in parts])


def measure(of: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    import zaq_onnx

    subject = load_subject(of["model"], args.data)
    images, _ = shared_images(of, subject, args.cache)
    ranges = images
    if ranges is None:
        ranges, _ = shared_images(of, subject, args.cache, "pwlq")
    assert ranges is not None  # the strategy has a recipe
    torch.manual_seed(of["seed"])
    applied = apply(of["method"], subject.model, request_for(of, subject, images))
    expected = subject.outputs(subject.model)
    measured = Measure(subject, expected, subject.score(expected)).of
    simulated = measured(subject.outputs(applied.model))
    example = subject.images[:2]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        written = zaq_onnx.export(
            applied.model, (example,), path, calibration=ranges.split(8), reduce_range=True
        )
        checked = zaq_onnx.verify(path, applied.model, (example,), runtimes=("onnxruntime",))
        answered = measured(answers(path, subject))
    (runtime,) = checked.runtimes
    return {
        "job": of,
        "metric": simulated["metric"],
        "levels": applied.levels,
        "data": applied.data,
        "fp32": simulated["fp32"],
        "simulated": {name: simulated[name] for name in FIGURES},
        "file": {name: answered[name] for name in FIGURES},
        "bytes": written.bytes,
        "int8_bytes": written.int8_bytes,
        "integer_layers": runtime.integer_layers,
        "float_layers": runtime.float_layers,
        "problems": checked.problems,
        "largest_difference": float(np.float32(runtime.error)),
    }


def page(rows: list[dict[str, Any]]) -> Page:
    """The table."""
    assert __doc__ is not None
    document = Page("From a method to a file", [__doc__.split("\n\n", 2)[2].strip()])
    document.parts.append(
        "Stored bits 4, activations 8 bits; score / agreement with the float model, both in "
        "percent, on the field's images; one seed. The file is measured, not predicted."
    )
    heads = ["model", "method", "float", "simulated", "file, ONNX Runtime"]
    heads += ["layers on int8 kernels", "file, kB", "int8 file, kB", "verified"]
    text = [
        [
            f"{TITLES[row['job']['model']]} ({row['metric']})",
            method_name(line_of(row)),
            f"{row['fp32']:.2f}",
            _pair(row["simulated"]),
            _pair(row["file"]),
            f"{row['integer_layers']} of {row['integer_layers'] + row['float_layers']}",
            f"{row['bytes'] / 1000:,.1f}",
            f"{row['int8_bytes'] / 1000:,.1f}",
            "no: " + "; ".join(row["problems"]) if row["problems"] else "yes",
        ]
        for row in rows
    ]
    document.parts.append(Grid(heads, text, "llrrrrrrl"))
    return document


def _pair(figures: dict[str, float]) -> str:
    return f"{figures['score']:.2f} / {figures['agreement']:.2f}"


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, then write the table beside the rows."""
    parser = command_line(__doc__, NEEDS)
    parser.add_argument("--data", type=Path, required=True, help="folder of models and images")
    usual = [model for model in MODELS if model not in LITE]
    parser.add_argument("--model", nargs="+", choices=MODELS, default=usual)
    parser.add_argument("--method", nargs="+", default=["pwlq+gptq"])
    parser.add_argument("--bits", default="4/8", help="stored weight bits/activation bits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--effort", type=float, help="multiplies steps; default: as committed")
    parser.add_argument("--cache", type=Path, default=Path(".field-cache"), help="images")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    done = {key(row["job"]) for row in read_rows(args.out)}
    for model in args.model:
        for method in args.method:
            effort = EFFORT[model] * (AS_COMMITTED[model] if args.effort is None else args.effort)
            of = job(model, method, args.bits, args.seed, effort=effort)
            if key(of) in done:
                continue
            try:
                row = measure(of, args)
            except ValueError as error:
                print(f"{model} {method}: {error}", flush=True)
                continue
            append_row(args.out, row)
            print(json.dumps({k: row[k] for k in ("job", "simulated", "file")}), flush=True)
    args.out.with_suffix(".md").write_text(page(read_rows(args.out)).markdown())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
