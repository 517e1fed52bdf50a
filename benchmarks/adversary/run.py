"""ZAQ's adversary at length: its generator against distilled images and dead leaves, equal steps.

    python -m benchmarks.adversary --epochs 40 --lr 0.001 --seeds 0 1
    python -m benchmarks.adversary --tables

One student, one loss, one optimizer, one number of steps: those of the preset ``paper`` (L1 on
outputs, 0.1 of the relation maps' distance, SGD, cosine). Its rate is 0.01, at which two-bit
weights jump about on any images; 0.001 was chosen on the training images (four epochs, another
seed, distilled and generated images). Only the images differ:

    published       the paper's generator, five student steps to one of its own, nothing before
    warmed          the same, warmed up for 60 steps on BatchNorm statistics, which stay in its loss
    distilled       512 images distilled from BatchNorm statistics, and no generator
    leaves          512 images of dead leaves
    real            the training images: the ceiling
    default         another recipe, for comparison: the default preset, reconstruction and all

Activation ranges come from each one's own images. The paper's schedule is 300 epochs of 300 student
steps and 60 of the generator; ``--epochs`` takes part of it, the rate falls to zero over that. The
network is small enough for a processor: three convolutions with BatchNorm on scikit-learn's digits,
trained here in seconds. The held-out third measures on the way and at the end, and chooses nothing:
what a run ends at is shown beside what the judge hands back. What ``--out`` holds is not run again.
"""

from __future__ import annotations

import argparse
import copy
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.adversary.tables import curves, page
from benchmarks.rows import RESULTS, append_row, command_line, read_rows
from zaq_plugin.observers import MinMaxObserver
from zaq_plugin.ptq import fold_batch_norm, simulate
from zaq_plugin.pwlq import UniformSpec
from zaq_plugin.zero_shot import ZeroShotConfig, zero_shot_finetune
from zaq_timm.digits import IMAGE_SHAPE, PIXEL_MEAN, PIXEL_STD, load_digits_split

NEEDS = """Needs scikit-learn (the extra timm), and no folder. Takes 10 ms a student step with a
generator and 6 without: a quarter of an hour for 40 epochs, two seeds, three kinds of images."""

OUT = RESULTS / "adversary.jsonl"
FIGURE = Path(__file__).parents[2] / "docs" / "figures" / "adversary.svg"
EPOCH = 300
"""Student steps of one of the paper's epochs."""
PUBLISHED_LR = 0.01
IMAGES = 512
BATCH = 32
POINTS = 25
"""So often a run is measured on the way."""
SOURCES: dict[str, dict[str, Any]] = {
    "published": {},
    "warmed": {"bn_weight": 1.0, "warmup_steps": 60},
    "distilled": {"images": "distilled", "distilled_images": IMAGES},
    "leaves": {"images": "distilled", "distilled_images": IMAGES, "distill_steps": 0},
    "real": {"images": "distilled"},
    "default": {},
}
"""What each changes of the preset ``paper``, and what is another preset."""


def _convolution(channels_in: int, channels: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
    return [convolution, nn.BatchNorm2d(channels), nn.ReLU()]


def untrained() -> nn.Sequential:
    """Three convolutions of 8, 16 and 32 channels, and a linear layer: 6,000 weights."""
    layers = [*_convolution(1, 8, 1), *_convolution(8, 16, 2), *_convolution(16, 32, 2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def trained(epochs: int = 40, seed: int = 0) -> nn.Module:
    """The network, trained on the digits' training images, in evaluation mode.

    Args:
        epochs: Over the training images.
        seed: Of weights and order.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = untrained()
    rng, split = torch.Generator().manual_seed(seed), load_digits_split()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    count = len(split.train_labels) // 64
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=epochs * count)
    for _ in range(epochs):
        order = torch.randperm(len(split.train_labels), generator=rng)
        for chosen in order[: count * 64].split(64):
            logits = model(split.train_images[chosen])
            loss = nn.functional.cross_entropy(logits, split.train_labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def config_of(job: dict[str, Any]) -> ZeroShotConfig:
    """The job's settings."""
    if job["source"] == "default":
        return ZeroShotConfig(seed=job["seed"])
    steps = EPOCH * job["epochs"]
    return ZeroShotConfig.preset(
        "paper",
        seed=job["seed"],
        steps=steps,
        batch_size=BATCH,
        generator_width=16,
        student_lr=job["lr"],
        validate_every=max(1, steps // POINTS),
        **SOURCES[job["source"]],
    )


class Bench:
    """The network, and what measures its students."""

    def __init__(self) -> None:
        self.split = load_digits_split()
        self.model = trained()
        self.expected = self._classes(self.model)

    @torch.no_grad()
    def _classes(self, model: nn.Module) -> Tensor:
        return model(self.split.test_images).argmax(1)

    def agreement(self, student: nn.Module) -> float:
        """In percent, on the held-out images."""
        return _percent(self._classes(student) == self.expected)

    def top1(self, student: nn.Module) -> float:
        """In percent, on the held-out images."""
        return _percent(self._classes(student) == self.split.test_labels)

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """One row.

        Args:
            job: ``source``, ``bits`` of weights / of activations, ``epochs``, ``lr``, ``seed``.
        """
        weights, activations = (int(bits) for bits in job["bits"].split("/"))
        example = self.split.train_images[:1]
        student = simulate(
            fold_batch_norm(copy.deepcopy(self.model), (example,)),
            UniformSpec(bits=weights, symmetry="asymmetric", clip="mse"),
            activations,
            input_bits=8,
            observer=MinMaxObserver,
            example_inputs=(example,),
        )
        config = config_of(job)
        curve: list[tuple[int, float]] = []

        def measure(step: int) -> None:
            if step == 1 or step % config.judging.every == 0 or step == config.steps:
                curve.append((step, self.agreement(student)))

        torch.manual_seed(job["seed"])
        started = time.process_time()
        result = zero_shot_finetune(
            student,
            config,
            image_shape=IMAGE_SHAPE,
            float_model=self.model,
            mean=(PIXEL_MEAN,),
            std=(PIXEL_STD,),
            images=self.split.train_images if job["source"] == "real" else None,
            progress=False,
            on_step=measure,
        )
        best = result.best
        return {
            "job": job,
            "float": self.top1(self.model),
            "curve": curve,
            "end": curve[-1][1],
            "handed_back": self.agreement(student),
            "top1": self.top1(student),
            "best": None if best is None else best.label,
            "restarts": result.restarts,
            "terms": [{k: round(v, 5) for k, v in point.items()} for point in result.curve],
            "seconds": round(time.process_time() - started, 1),
        }


def _percent(hits: Tensor) -> float:
    return round(100 * float(hits.double().mean()), 3)


def jobs_of(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What the command line asks for, a seed after the other."""
    for seed in args.seeds:
        for bits in args.bits:
            for source in args.source:
                job = {"source": source, "bits": bits, "epochs": args.epochs, "seed": seed}
                own = {"epochs": 0, "lr": 0.0} if source == "default" else {"lr": args.lr}
                yield {**job, **own}


def rows_of(path: Path) -> list[dict[str, Any]]:
    """What a file holds; jobs that name no rate had the published one."""
    return [{**row, "job": {"lr": PUBLISHED_LR, **row["job"]}} for row in read_rows(path)]


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, then write the page and the curves."""
    command = command_line(__doc__, NEEDS)
    command.add_argument(
        "--source", nargs="+", choices=list(SOURCES), default=["published", "distilled", "leaves"]
    )
    command.add_argument("--bits", nargs="+", default=["2/4"])
    command.add_argument("--epochs", type=int, default=40)
    command.add_argument("--lr", type=float, default=PUBLISHED_LR, help="of the student")
    command.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    command.add_argument("--out", type=Path, default=OUT)
    command.add_argument("--figure", type=Path, default=FIGURE)
    command.add_argument("--tables", action="store_true", help="write the page and stop")
    args = command.parse_args(argv)
    logging.disable(logging.WARNING)
    bench: Bench | None = None
    for job in [] if args.tables else jobs_of(args):
        if any(row["job"] == job for row in rows_of(args.out)):
            continue
        bench = bench or Bench()
        row = bench.run(job)
        append_row(args.out, row)
        print(job, row["curve"][0][1], row["end"], row["handed_back"], row["seconds"], flush=True)
    rows = rows_of(args.out)
    if rows:
        args.out.with_suffix(".md").write_text(page(rows).markdown())
        args.figure.write_text(curves(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
