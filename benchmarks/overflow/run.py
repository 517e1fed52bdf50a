"""What weights that cannot overflow cost, and what those that can lose: both kinds of processor.

    python -m benchmarks.overflow --data DIR [--model cifar10 imagenet] [--processor native avx2]
                                  [--images N] [--out benchmarks/results/overflow.jsonl]

Weights of 2 to 8 MAC bits, eight-bit activations, each with ``overflow="pairs"`` (the default) and
``overflow="allowed"``: signal to noise of all weights together, and agreement with the float model,
simulated and as converted models run. ``avx2`` is a processor without VNNI, emulated: oneDNN (in
torch and in OpenVINO) and FBGEMM are told by ONEDNN_MAX_CPU_ISA, FBGEMM_ENABLE_INSTRUCTIONS; ONNX
Runtime, which takes no such word, runs in valgrind, whose processor has AVX2 at most. A product of
two large weights with two activations of 255 shows whether kernels saturate; every row says so.
Each row becomes a JSON line the moment it is there; a second run goes on where the first one ended.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.overflow.runners import CALIBRATION, RUNNERS, Bed, spec_of
from benchmarks.overflow.tables import KEY, markdown
from benchmarks.processor import processor
from benchmarks.rows import RESULTS, append_row, command_line, read_rows

NEEDS = """Needs --data DIR, torchao and onnxruntime; --processor avx2 also valgrind. Takes some
minutes a runner, and an hour in valgrind."""

EMULATED = {"ONEDNN_MAX_CPU_ISA": "AVX2", "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2"}
"""What tells libraries to do without VNNI; they read it when they are loaded."""
OVERFLOW = ("pairs", "allowed")
CONVERTED = (3, 4, 6, 8)
"""MAC bits that are converted, too."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing, then write the table."""
    parser = command_line(__doc__, NEEDS)
    parser.add_argument("--data", type=Path, required=True, help="folder of models and images")
    parser.add_argument("--model", choices=tuple(CALIBRATION), nargs="+", default=[*CALIBRATION])
    parser.add_argument("--processor", choices=("native", "avx2"), default="native")
    parser.add_argument("--bits", type=int, nargs="+", help="only these MAC bits")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--runner", nargs="+", choices=tuple(RUNNERS), default=[*RUNNERS])
    parser.add_argument("--out", type=Path, default=RESULTS / "overflow.jsonl")
    args = parser.parse_args(argv)
    if args.processor == "avx2" and not EMULATED.items() <= os.environ.items():
        again = [sys.executable, "-m", "benchmarks.overflow", *(argv or sys.argv[1:])]
        os.execve(sys.executable, again, {**os.environ, **EMULATED})
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    done = {tuple(row[k] for k in ("runner", *KEY)) for row in read_rows(args.out)}
    for model in args.model:
        bed = Bed(model, args.data, args.images)
        for runner in args.runner:
            if runner == "simulated" and args.processor == "avx2":
                continue  # it computes in float
            if runner in ("fx", "stock") and model == "imagenet":
                continue  # torch.fx cannot trace its padding
            bits = args.bits or (range(2, 9) if runner == "simulated" else CONVERTED)
            for width in (8,) if runner == "stock" else bits:
                for overflow in ("stock",) if runner == "stock" else OVERFLOW:
                    job = {"model": model, "bits": width, "stored": width, "overflow": overflow,
                           "processor": args.processor, "runner": runner}  # fmt: skip
                    if runner != "stock":
                        job["stored"] = spec_of(width, overflow).stored_bits
                    if tuple(job[k] for k in ("runner", *KEY)) in done:
                        continue
                    for figures in RUNNERS[runner](bed, job):
                        row = {**figures, "flags": processor()}
                        append_row(args.out, row)
                        print(row, file=sys.stderr, flush=True)
    args.out.with_suffix(".md").write_text(markdown(read_rows(args.out)))
    return 0
