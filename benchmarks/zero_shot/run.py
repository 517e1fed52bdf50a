"""Zero-shot fine-tuning on real weights: before, after, with real images, at any widths.

    python -m benchmarks.zero_shot --data DIR --bits 4/4 3/3 2/4 --method default --seeds 0 1 2

One JSON line per result goes to ``--out``; what is there already is not run again. ``--set``
changes settings of `ZeroShotConfig`; ``--jobs FILE`` runs a list of jobs (one JSON object per line,
with the same names) in ``--workers`` processes. ``--table`` prints what ``--out`` holds.

Protocol: all layers quantized, weights per output channel, activations per tensor at the inputs of
all layers (residual additions are not quantized separately), the network's own input at 8 bits
unless ``--input-bits`` says otherwise, BatchNorm folded. No real image is seen before the last
line, which evaluates on the test images; ``--method real`` is fine-tuning with the ``train``
images, the ceiling (MobileNet has none: CIFAR-10's, enlarged, take their place, which is no
ceiling). ``--tune`` leaves the test images alone and reports agreement with the float
model, and divergence from it, on ``train`` images.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.data.tasks import Task, foreign_images, load_task
from benchmarks.rows import append_row, command_line
from benchmarks.zero_shot.jobs import activation_spec, config_of, jobs_of, rows_of, weight_spec
from benchmarks.zero_shot.tables import ablation, layer_weights, results
from zaq_plugin.observers import MinMaxObserver
from zaq_plugin.ptq import calibrate, correct_bias, fold_batch_norm, simulate
from zaq_plugin.zero_shot import (
    ZeroShotConfig,
    ZeroShotLoader,
    zero_shot_finetune,
)

NEEDS = """Needs --data DIR. Takes about five minutes a job."""

NORMALISATION = {
    "cifar10": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "imagenet": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def prepare_student(task: Task, job: dict[str, Any], device: torch.device) -> nn.Module:
    """The folded model with fake-quantizers on every layer."""
    weight_bits, activation_bits = (int(b) for b in job["bits"].split("/"))
    input_bits = job["input_bits"] or None
    student = simulate(
        fold_batch_norm(task.model, (task.images[:1],)),
        weight_spec(job["weights"], weight_bits),
        activation_spec(job["activations"], activation_bits),
        input_bits=input_bits,
        depthwise=job["depthwise"],
        observer=MinMaxObserver,
        example_inputs=(task.images[:1],),
    )
    return student.to(device)


@torch.no_grad()
def answers(model: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    """Logits of all images, on the CPU."""
    return torch.cat([model(part.to(device)).float().cpu() for part in images.split(256)])


def real_images(task: Task, data: Path) -> Tensor:
    """The task's images that may calibrate; where it has none, real images of another kind."""
    return foreign_images(data, task, 512) if task.train is None else task.train


def measure(
    model: nn.Module, task: Task, device: torch.device, tune: bool, reference: nn.Module
) -> dict[str, float]:
    """Test accuracy and agreement; when tuning, agreement on ``train`` images only."""
    if tune:
        if task.train is None:
            return {}
        mine, right = (answers(m, task.train, device) for m in (model, reference))
        divergence = (right.softmax(1) * (right.log_softmax(1) - mine.log_softmax(1))).sum(1)
        return {
            "train_agreement": _percent(mine.argmax(1) == right.argmax(1)),
            "train_divergence": round(float(divergence.double().mean()), 5),
        }
    mine, right = (answers(m, task.images, device) for m in (model, reference))
    return {
        "top1": _percent(mine.argmax(1) == task.labels),
        "agreement": _percent(mine.argmax(1) == right.argmax(1)),
        "fp32": _percent(right.argmax(1) == task.labels),
    }


def _percent(hits: Tensor) -> float:
    return round(100 * float(hits.double().mean()), 3)


def shape_of(task: Task, size: int) -> tuple[int, int, int]:
    """(channels, height, width) of synthetic images; size 0 is that of the task's own."""
    channels, height, width = task.images.shape[1:]
    return (channels, size or height, size or width)


def distilled(
    task: Task, student: nn.Module, config: ZeroShotConfig, size: int, cache: Path | None
) -> tuple[Tensor, float]:
    """Training and validation images, and the seconds that making them took.

    Jobs that make the same images share them through the cache folder.
    """
    names = (
        "seed", "distilled_images", "validation_images", "distill_steps", "distill_start",
        "distill_lr",
        "distill_method", "total_variation", "class_weight", "swing", "low_pass",
    )  # fmt: skip
    key = "-".join([*(f"{getattr(config, n)}" for n in names), *([str(size)] if size else [])])
    path = None if cache is None else cache / f"{task.name}-{key}.pt"
    if path is not None and _made_already(path):
        stored = torch.load(path, weights_only=True)
        return stored["images"], float(stored["seconds"])
    mean, std = NORMALISATION[task.name]
    device = next(student.parameters()).device
    start = time.perf_counter()
    loader = ZeroShotLoader(
        student,
        shape_of(task, size),
        config,
        float_model=copy.deepcopy(task.model).to(device),
        mean=mean,
        std=std,
    )
    images = loader.distill(config.distilled_images + config.validation_images).cpu()
    seconds = time.perf_counter() - start
    if path is not None:
        temporary = path.with_suffix(f".{time.time_ns()}.tmp")
        torch.save({"images": images, "seconds": seconds}, temporary)
        temporary.replace(path)
    return images, seconds


def _made_already(path: Path) -> bool:
    """Whether a cached file exists; waits for a job that is making it, at most ten minutes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_suffix(".lock")
    for _ in range(600):
        if path.exists():
            return True
        try:
            lock.touch(exist_ok=False)
        except FileExistsError:
            time.sleep(1)
            continue
        return False
    return False


def run_job(job: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    torch.manual_seed(job["seed"])
    device = torch.device(args.device)
    task = load_task(job["task"], Path(args.data))
    float_model = copy.deepcopy(task.model).to(device)
    config = config_of(job)
    student = prepare_student(task, job, device)
    row: dict[str, Any] = {"job": job}
    start = time.perf_counter()
    images, seconds = None, 0.0
    if job["method"] == "real":
        images = real_images(task, Path(args.data))
    elif config.uses_distilled:
        images, seconds = distilled(task, student, config, job["image_size"], args.cache)
        start = time.perf_counter()
    if job["method"] == "before":
        assert images is not None
        ranges = images[: config.calibration_images].to(device).split(64)
        calibrate(student, ranges)
        if job["correct"]:
            correct_bias(student, ranges)
    else:
        mean, std = NORMALISATION[task.name]
        result = zero_shot_finetune(
            student,
            config,
            image_shape=shape_of(task, 0 if images is None else images.shape[-1]),
            float_model=copy.deepcopy(task.model).to(device),
            mean=mean,
            std=std,
            images=images,
            correct=correct_bias if job["correct"] else None,
            progress=args.progress,
        )
        row["verdicts"] = [
            [v.label, round(v.divergence, 5), round(v.agreement, 4), v.accepted]
            for v in result.verdicts
        ]
        row["best"] = None if result.best is None else result.best.label
        row["stages"] = {k: round(v, 1) for k, v in result.seconds.items()}
        row["blocks"] = [
            [b.name, round(b.before, 5), round(b.after, 5), round(b.rerounded, 4)]
            for b in result.blocks
        ]
        row["layer_weights"] = result.layer_weights
        row["restarts"] = result.restarts
    row["seconds"] = round(time.perf_counter() - start + seconds, 1)
    row.update(measure(student, task, device, args.tune, float_model))
    row["machine"] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    row["protocol"] = "tuning: train images, agreement only" if args.tune else "test images"
    return row


def _work(package: tuple[dict[str, Any], argparse.Namespace]) -> dict[str, Any]:
    job, args = package
    torch.set_num_threads(args.threads)
    try:
        return run_job(job, args)
    except Exception as error:  # one bad job must not end the others
        return {"job": job, "error": f"{type(error).__name__}: {error}"}


def run_all(jobs: list[dict[str, Any]], args: argparse.Namespace) -> Iterable[dict[str, Any]]:
    """Rows as they are finished."""
    packages = [(job, args) for job in jobs]
    if args.workers <= 1:
        yield from map(_work, packages)
        return
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        yield from pool.imap_unordered(_work, packages)


def show(rows: list[dict[str, Any]]) -> None:
    """One short line per row."""
    for row in rows:
        job = row["job"]
        what = f"{job['task']} {job['bits']} {job['weights']} {job['method']} seed {job['seed']}"
        if "error" in row:
            print(f"{what}: {row['error']}")
            continue
        verdicts = row.get("verdicts") or []
        best = [v for v in verdicts if v[0] == row.get("best")]
        names = ("top1", "agreement", "train_agreement", "train_divergence", "fp32")
        figures = {k: row[k] for k in names if k in row}
        print(f"{what} {job['set']} {figures} best {best} {row['seconds']} s {row.get('stages')}")


def main() -> None:
    """Run, or print, what the command line asks for."""
    parser = command_line(__doc__, NEEDS)
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--out", type=Path, default=Path("zero_shot.jsonl"))
    parser.add_argument("--task", default="cifar10")
    parser.add_argument("--bits", nargs="+", default=["4/4"], help="stored weight bits/activation")
    parser.add_argument("--weights", nargs="+", default=["uniform"])
    parser.add_argument("--activations", choices=("uniform", "pwlq"), default="uniform")
    parser.add_argument("--method", nargs="+", default=["default"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--input-bits", type=int, default=8, help="0: as other activations")
    parser.add_argument("--depthwise", choices=("as-told", "int8"), default="as-told")
    parser.add_argument("--correct", action="store_true", help="correct biases before training")
    parser.add_argument("--image-size", type=int, default=0, help="of synthetic images, pixels")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--jobs", help="file of jobs, one JSON object per line")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cache", type=Path, default=None, help="folder of distilled images")
    parser.add_argument("--tune", action="store_true", help="leave the test images alone")
    parser.add_argument("--progress", action="store_true")
    parser.add_argument("--table", action="store_true", help="print --out and stop")
    parser.add_argument("--page", action="store_true", help="print --out as Markdown and stop")
    args = parser.parse_args()
    if args.table:
        show(rows_of(args.out))
        return
    if args.page:
        rows = rows_of(args.out)
        print("\n".join([*results(rows), *layer_weights(rows), *ablation(rows)]))
        return
    done = {json.dumps(r["job"], sort_keys=True) for r in rows_of(args.out) if "error" not in r}
    todo = [j for j in jobs_of(args) if json.dumps(j, sort_keys=True) not in done]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for row in run_all(todo, args):
        append_row(args.out, row)
        show([row])
        sys.stdout.flush()
