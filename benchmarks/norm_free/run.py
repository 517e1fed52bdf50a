"""Networks without BatchNorm: what images made without data give, against real ones.

    python -m benchmarks.norm_free --data DIR --seeds 0 1 2
    python -m benchmarks.norm_free --network vit-digits fixup-digits --held-back
    python -m benchmarks.norm_free --tables

A vision transformer, a ConvNeXt and a Fixup ResNet, each trained here on CIFAR-10's ``train``
images and on scikit-learn's digits (`benchmarks.data.norm_free`). 32 images calibrate a method at
several widths: real ones of the training images, or those of `benchmarks.norm_free.sources` that
have an aim on the network. ``--method`` says which; rows that compare all sources at more than
4-bit activations are of ``pwlq+gptq+top-k``, whose ranges are medians of extremes. Agreement with
the float network and mean KL divergence are measured on training images held back, which may choose
a default, and on test images, which may not; with ``--held-back`` test images are left alone. What
``--out`` holds is not run again, but for rows without test images where those are wanted.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from benchmarks.data.norm_free import (
    NETWORKS,
    Images,
    cifar_images,
    digits_images,
    trained,
)
from benchmarks.norm_free.sources import SOURCES, make
from benchmarks.norm_free.tables import page
from benchmarks.rows import RESULTS, append_row, command_line, read_rows
from zaq_plugin.image_counts import CALIBRATION_IMAGES
from zaq_plugin.strategies import Request, apply
from zaq_plugin.zero_shot import ImageFormat

NEEDS = """Needs --data DIR for CIFAR-10, timm and scikit-learn. Takes 6 CPU minutes to train the
six networks, once, and one to three for each network and seed of the default widths."""

OUT = RESULTS / "norm_free.jsonl"
BITS = ("8/8", "6/8", "6/6", "4/8", "4/4")
REAL = "real"
CIFAR, DIGITS = "cifar", "digits"
MEASURED = 2000
"""So many test images at most, evenly spread: CIFAR-10's file is sorted by class."""


@torch.no_grad()
def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """(n, classes)."""
    with parametrize.cached():
        return torch.cat([model(part) for part in images.split(250)])


def compared(logits: Tensor, expected: Tensor) -> dict[str, float]:
    """Agreement in percent, and the mean divergence from what the float network answers in nats."""
    same = (logits.argmax(1) == expected.argmax(1)).double().mean()
    of = F.log_softmax(logits.double(), 1), F.log_softmax(expected.double(), 1)
    divergence = F.kl_div(*of, reduction="batchmean", log_target=True)
    return {"agreement": round(100 * float(same), 3), "kl": round(float(divergence), 5)}


class Bench:
    """A network, its images, and what it answers."""

    def __init__(self, network: str, args: argparse.Namespace) -> None:
        kind, _, source = network.partition("-")
        self.images: Images = digits_images() if source == DIGITS else cifar_images(args.data)
        self.model = trained(kind, source, self.images, args.cache)
        self.held_back = logits_of(self.model, self.images.held_back)
        count = len(self.images.test)
        chosen = torch.linspace(0, count - 1, min(count, MEASURED)).long()
        self.tested, self.labels = self.images.test[chosen], self.images.labels[chosen]
        self.test = None if args.held_back else logits_of(self.model, self.tested)
        self.made: dict[tuple[str, int, int], tuple[Tensor, float]] = {}

    def calibration(self, source: str, count: int, seed: int) -> tuple[Tensor, float]:
        """Images of a source, and the CPU seconds that making them took."""
        if (source, count, seed) not in self.made:
            images, started = self.images, time.process_time()
            if source == REAL:
                rng = torch.Generator().manual_seed(seed)
                chosen = torch.randperm(len(images.train), generator=rng)[:count]
                found = images.train[chosen]
            else:
                shape = (images.train.shape[1], *images.train.shape[2:])
                kind = ImageFormat(shape, images.mean, images.std)
                found = make(SOURCES[source], self.model, count, kind, seed)
            self.made[source, count, seed] = found, time.process_time() - started
        return self.made[source, count, seed]

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """One row."""
        images = self.images
        made = self.calibration(job["source"], job["count"], job["seed"])
        weights, activations = (int(bits) for bits in job["bits"].split("/"))
        request = Request(
            weights,
            activations,
            example_inputs=(images.train[:2],),
            mean=images.mean,
            std=images.std,
            seed=job["seed"],
            synthetic=made[0],
            synthetic_count=len(made[0]),
            batch_size=32,
        )
        started = time.process_time()
        student = apply(job["method"], self.model, request).model
        seconds = time.process_time() - started
        row: dict[str, Any] = {
            "job": job,
            "held_back": compared(logits_of(student, images.held_back), self.held_back),
            "images_seconds": round(made[1], 2),
            "seconds": round(seconds, 2),
        }
        if self.test is not None:
            logits = logits_of(student, self.tested)
            row["test"] = compared(logits, self.test)
            row["test"]["top1"] = _top1(logits, self.labels)
            row["float"] = _top1(self.test, self.labels)
        return row


def _top1(logits: Tensor, labels: Tensor) -> float:
    return round(100 * float((logits.argmax(1) == labels).double().mean()), 3)


def jobs_of(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What the command line asks for, network by network."""
    for network in args.network:
        for seed in args.seeds:
            for source in args.source:
                if source != REAL and not SOURCES[source].suits(network.partition("-")[0]):
                    continue
                for method in args.method:
                    for bits in args.bits:
                        yield {
                            "network": network,
                            "source": source,
                            "method": method,
                            "bits": bits,
                            "seed": seed,
                            "count": args.images,
                        }


def rows_of(path: Path) -> list[dict[str, Any]]:
    """What a file holds, the last row of a job; jobs that name no number had the usual one."""
    usual = {"count": CALIBRATION_IMAGES}
    found = [{**row, "job": {**usual, **row["job"]}} for row in read_rows(path)]
    return list({json.dumps(row["job"], sort_keys=True): row for row in found}.values())


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, then write the page."""
    networks = [f"{name}-{source}" for source in (CIFAR, DIGITS) for name in NETWORKS]
    sources = [REAL, *SOURCES]
    command = command_line(__doc__, NEEDS)
    command.add_argument("--data", type=Path, help="folder of models and images")
    command.add_argument("--network", nargs="+", choices=networks, default=networks)
    command.add_argument("--source", nargs="+", choices=sources, default=sources)
    command.add_argument("--method", nargs="+", default=["pwlq+gptq"])
    command.add_argument("--bits", nargs="+", default=list(BITS))
    command.add_argument("--images", type=int, default=CALIBRATION_IMAGES, help="how many")
    command.add_argument("--seeds", nargs="+", type=int, default=[0])
    command.add_argument("--held-back", action="store_true", help="leave test images alone")
    command.add_argument("--cache", type=Path, default=Path(".field-cache"))
    command.add_argument("--out", type=Path, default=OUT)
    command.add_argument("--tables", action="store_true", help="write the page and stop")
    args = command.parse_args(argv)
    if args.data is None and not args.tables and any(CIFAR in name for name in args.network):
        command.error("--data must name the folder of models and images, for CIFAR-10")
    done = [row["job"] for row in rows_of(args.out) if args.held_back or "test" in row]
    bench: Bench | None = None
    at = ""
    for job in [] if args.tables else jobs_of(args):
        if job in done:
            continue
        if bench is None or at != job["network"]:
            bench, at = Bench(job["network"], args), job["network"]
        row = bench.run(job)
        append_row(args.out, row)
        print(*job.values(), row["held_back"], flush=True)
    rows = rows_of(args.out)
    if rows:
        args.out.with_suffix(".md").write_text(page(rows).markdown())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
