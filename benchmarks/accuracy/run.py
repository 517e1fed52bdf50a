"""Accuracy of weight formats on real models and real images.

    python -m benchmarks.accuracy --data DIR
    python -m benchmarks.accuracy --data DIR --model imagenet --seeds 0 1 2

Uniform grids and PWLQ by each policy, with and without bias correction, from W8A8 to W2A4, and
uniform grids at PWLQ's *stored* bits. Each result becomes one JSON line the moment it is there; a
second run goes on where the first one ended.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils import parametrize

from benchmarks.accuracy.tables import (
    CALIBRATION,
    METHODS,
    Cell,
    Measured,
    markdown,
    read_lines,
    to_rows,
)
from benchmarks.data.tasks import LOADERS, Task, accuracy, distil, load_task, logits_of
from benchmarks.rows import RESULTS, append_record, command_line
from zaq_plugin.layers import is_depthwise
from zaq_plugin.observers import MinMaxObserver, TopKMedianObserver
from zaq_plugin.ptq import calibrate, correct_bias, fold_batch_norm, quantized_tensors, simulate
from zaq_plugin.pwlq import UniformSpec
from zaq_plugin.report.tables import results_table

NEEDS = """Needs --data DIR with cifar10/ or imagenet/ in it. Takes about half a minute a
configuration: half an hour for CIFAR-10, more than an hour for ImageNet."""

BATCH = {"cifar10": 250, "imagenet": 50}
HELD_OUT = {"cifar10": 500, "imagenet": 64}
OBSERVERS = {"minmax": MinMaxObserver, "topk": TopKMedianObserver}
WIDTHS = ((4, 8), (4, 4), (3, 3), (2, 4), (6, 8), (8, 8))


def cells(
    task: str,
    images: int,
    seeds: Sequence[int],
    observers: Sequence[str],
    widths: Sequence[tuple[int, int]],
) -> Iterator[Cell]:
    """Everything to measure, uniform grids at PWLQ's stored bits included."""
    has_depthwise = task == "imagenet"
    for seed in seeds:
        for observer in observers:
            for depthwise in ("int8", "as-told") if has_depthwise else ("none",):
                for bits, activations in widths:
                    for method in METHODS:
                        uniform = method.startswith("uniform")
                        for width in (bits, bits + 1) if uniform and bits < 8 else (bits,):
                            yield Cell(
                                task, method, width, activations, observer, depthwise, seed, images
                            )


class Bench:
    """One task with its float outputs and calibration images, made when first needed."""

    def __init__(
        self,
        task: Task,
        limit: int | None,
        log: Callable[[str], None],
        held_out: int | None = None,
    ) -> None:
        self.task, self.log = task, log
        self.images, self.labels = task.images[:limit], task.labels[:limit]
        self.batch = BATCH[task.name]
        self.held_out = HELD_OUT[task.name] if held_out is None else held_out
        self.folded = fold_batch_norm(task.model, (task.images[:1],))
        self.reference = logits_of(self.folded, self.images, self.batch)
        self.top1 = accuracy(self.reference, self.labels)
        self._sources: dict[int, tuple[Tensor, Tensor]] = {}

    def source(self, seed: int) -> tuple[Tensor, Tensor]:
        """Images that calibrate, and others on which formats may be compared; never test images."""
        if seed not in self._sources:
            count, spare = CALIBRATION[self.task.name], self.held_out
            pool = self.task.train
            if pool is None:
                self.log(
                    f"distilling {count + spare} images from BatchNorm statistics, seed {seed}"
                )
                size = self.images.shape[-1]
                pool = distil(self.task.model, count + spare, size, seed=seed)
            else:
                order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
                pool = pool[order]
            self._sources[seed] = pool[:count], pool[count : count + spare]
        return self._sources[seed]

    def measure(self, cell: Cell) -> Iterator[tuple[Cell, Measured]]:
        """The cell without, then with bias correction."""
        started = time.perf_counter()
        calibration, held_out = self.source(cell.seed)
        batches = calibration.split(64 if cell.observer == "minmax" else 4)
        activations = cell.activation_bits
        overrides = {}
        if cell.depthwise == "int8":
            wide = (UniformSpec(bits=8), activations)
            names = [n for n, m in self.folded.named_modules() if is_depthwise(m)]
            overrides = dict.fromkeys(names, wide)
        student = simulate(
            self.folded,
            cell.spec,
            activations,
            overrides=overrides,
            depthwise="as-told",
            observer=OBSERVERS[cell.observer],
            example_inputs=(calibration[:1],),
        )
        calibrate(student, batches)
        seconds = time.perf_counter() - started
        expected = logits_of(self.folded, held_out, self.batch)
        for corrected in (False, True):
            if corrected:
                started = time.perf_counter()
                correct_bias(student, [calibration])
                seconds += time.perf_counter() - started
            measured = self._compare(student, held_out, expected, seconds)
            yield replace(cell, corrected=corrected), measured

    def _compare(
        self, student: nn.Module, held_out: Tensor, expected: Tensor, seconds: float
    ) -> Measured:
        tensors = quantized_tensors(student).values()
        with parametrize.cached():
            logits = logits_of(student, self.images, self.batch)
            spare = logits_of(student, held_out, self.batch)
        same = (logits.argmax(1) == self.reference.argmax(1)).double().mean()
        return Measured(
            accuracy(logits, self.labels),
            100 * float(same),
            divergence(self.reference, logits),
            divergence(expected, spare),
            sum(t.stored_bytes for t in tensors),
            statistics.fmean(t.sqnr_db for t in tensors),
            seconds,
            self.top1,
            sum(4 * p.numel() for p in self.folded.parameters() if p.dim() > 1),
        )


def divergence(expected: Tensor, actual: Tensor) -> float:
    """Mean KL divergence of the student's class probabilities from the float model's, in nats."""
    teacher, student = expected.double().log_softmax(1), actual.double().log_softmax(1)
    return float(F.kl_div(student, teacher, reduction="batchmean", log_target=True))


def _width(text: str) -> tuple[int, int]:
    weights, _, activations = text.partition("/")
    if not (weights.isdigit() and activations.isdigit()):
        raise argparse.ArgumentTypeError(f"expected bits such as 4/8, got {text!r}")
    return int(weights), int(activations)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__, NEEDS)
    parser.add_argument("--data", type=Path, required=True, help="folder of models and images")
    parser.add_argument("--model", choices=[*LOADERS, "all"], default="cifar10")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="calibration draws")
    parser.add_argument("--observers", choices=list(OBSERVERS), nargs="+", default=["minmax"])
    parser.add_argument(
        "--widths",
        type=_width,
        nargs="+",
        default=WIDTHS,
        metavar="W/A",
        help="MAC bits of weights and activations, such as 4/8",
    )
    parser.add_argument(
        "--only", nargs="+", default=[""], help="only methods whose name holds one of these texts"
    )
    parser.add_argument("--limit", type=int, help="measure on the first so many images only")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing, then print and write the tables."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    console, errors = Console(width=200), Console(stderr=True)
    args.out.mkdir(parents=True, exist_ok=True)
    lines = args.out / "accuracy.jsonl"
    done = read_lines(lines)
    for name in list(LOADERS) if args.model == "all" else [args.model]:
        bench = Bench(load_task(name, args.data), args.limit, errors.print)
        errors.print(f"{name}: FP32 {bench.top1:.2f} % (expected {bench.task.published} %)")
        count = len(bench.images)
        todo = (
            cell
            for cell in cells(name, count, args.seeds, args.observers, args.widths)
            if any(text in cell.method for text in args.only)
        )
        run(bench, todo, done, lines, errors.print)
        console.print(results_table(to_rows(done, name, count), name))
    (args.out / "accuracy.md").write_text(markdown(done))
    return 0


def run(
    bench: Bench,
    todo: Iterable[Cell],
    done: dict[Cell, Measured],
    lines: Path,
    log: Callable[[str], None],
) -> None:
    """Measure the cells that are not done, and append each result at once."""
    for cell in todo:
        if cell in done and replace(cell, corrected=True) in done:
            continue
        for variant, measured in bench.measure(cell):
            if variant in done:
                continue
            done[variant] = measured
            append_record(lines, variant, measured)
            log(
                f"W{cell.weight_bits}A{cell.activation_bits} {cell.method}"
                f"{' + bias' if variant.corrected else ''}: {measured.top1:.2f} %, "
                f"agreement {measured.agreement:.1f} %, KL {measured.held_out_divergence:.4f}"
            )
