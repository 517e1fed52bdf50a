"""Settings chosen on images that nothing was tuned on: how many images, which clips, which order.

    python -m benchmarks.field.choice --data DIR --model lite0 --method pwlq+gptq --bits 4/8 4/4 \\
        --images 16 32 64
    python -m benchmarks.field.choice --tables

Every setting calibrates on synthetic images of its seed, and is judged on other synthetic images,
held back: by the share of decisions that are the float model's, and by the mean KL divergence of
the classes' probabilities, which still tells where few decisions differ. Test images choose
nothing: with ``--test`` they are shown beside. What ``--out`` holds is not run again.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from benchmarks.data.images import request_for, shared_images
from benchmarks.data.subjects import BATCH, SYNTHETIC, TITLES, Subject, clock, load_subject
from benchmarks.field.jobs import LITE, job, key
from benchmarks.rows import RESULTS, append_row, command_line, read_rows
from benchmarks.tables import Grid, Page, mean_and_deviation
from zaq_plugin.strategies import apply

NEEDS = """Needs --data DIR. Takes five seconds a setting on CIFAR-10, half a minute on lite0, and
the images once."""

OUT = RESULTS / "field_choice.jsonl"
CLASSIFIERS = ("cifar10", "imagenet", *LITE)
HELD_BACK = {"cifar10": 256, "imagenet": 32, "lite0": 32, "lite1": 32, "lite2": 32}
"""So many synthetic images judge."""
HELD_BACK_SEED = 1000
INTRODUCTION = """Written by `python -m benchmarks.field.choice --data DIR`, which says in its first
lines how. Data-free; all layers quantized, protocol as in [field.md](field.md); widths are stored
bits of weights / bits of activations. **Held back** are synthetic images of another seed, which
calibrate nothing: agreement with the float model and mean KL divergence on them choose a setting.
Agreement on the test images is shown where it was measured, and chooses nothing. Means over seeds,
with their standard deviation. Seconds are CPU seconds of one thread on a machine that others use,
too: those of making the images, once for a model, and those of the method."""


@torch.no_grad()
def judged(model: nn.Module, images: Tensor, expected: Tensor, batch: int) -> dict[str, float]:
    """A classifier against the float model's logits.

    Args:
        model: Quantized.
        images: (n, C, H, W).
        expected: (n, classes), what the float model answers.
        batch: Images at a time.

    Returns:
        ``agreement`` in percent, ``kl`` in nats: of the float model's probabilities from its own.
    """
    with parametrize.cached():
        logits = torch.cat([model(part) for part in images.split(batch)])
    same = (logits.argmax(1) == expected.argmax(1)).double().mean()
    of = F.log_softmax(logits.double(), 1), F.log_softmax(expected.double(), 1)
    kl = F.kl_div(*of, reduction="batchmean", log_target=True)
    return {"agreement": round(100 * float(same), 3), "kl": round(float(kl), 5)}


class Bench:
    """A subject, its held-back images, and what the float model answers."""

    def __init__(self, model: str, args: argparse.Namespace) -> None:
        self.subject: Subject = load_subject(model, args.data)
        self.args = args
        self.held_back = self._images(HELD_BACK_SEED, HELD_BACK[model])[0]
        with torch.no_grad():
            parts = self.held_back.split(BATCH[model])
            self.expected = torch.cat([self.subject.model(part) for part in parts])
        self.tested: Tensor | None = None

    def _images(self, seed: int, count: int) -> tuple[Tensor, float]:
        of = job(self.subject.name, "pwlq", "4/8", seed)
        images, seconds = shared_images(of, self.subject, self.args.cache, count=count)
        assert images is not None  # every classifier here has BatchNorms
        return images, seconds

    def run(self, of: dict[str, Any]) -> dict[str, Any]:
        """One row."""
        subject, batch = self.subject, BATCH[self.subject.name]
        images, images_seconds = self._images(of["seed"], of["count"])
        torch.manual_seed(of["seed"])
        started = clock(subject)
        applied = apply(of["method"], subject.model, request_for(of, subject, images, of["count"]))
        row = {
            "job": of,
            "held_back": judged(applied.model, self.held_back, self.expected, batch),
            "seconds": round(clock(subject) - started, 1),
            "images_seconds": round(images_seconds, 1),
            "notes": applied.notes,
        }
        if self.args.test:
            if self.tested is None:
                self.tested = subject.outputs(subject.model)
            outputs = subject.outputs(applied.model)
            agreement = subject.agreement(self.tested, outputs)
            score = subject.score(outputs)
            row["test"] = {"agreement": round(agreement, 3), "score": round(score, 3)}
        return row


def page(rows: list[dict[str, Any]]) -> Page:
    """A table for each model and widths."""
    document = Page("Settings, chosen on images held back", [INTRODUCTION])
    groups: dict[tuple[str, str], dict[tuple[str, int], list[dict[str, Any]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in rows:
        of = row["job"]
        groups[of["model"], of["bits"]][of["method"], of["count"]].append(row)
    heads = ["method", "images", "seeds", "held back: agreement, %", "held back: KL"]
    heads += ["test: agreement, %", "test: top-1, %", "seconds, images", "seconds, method"]
    for (model, bits), settings in sorted(groups.items()):
        document.parts.append((2, f"{TITLES[model]}, {bits}"))
        table = []
        for (method, count), part in sorted(settings.items()):
            tested = [r["test"] for r in part if "test" in r]
            table.append(
                [
                    f"`{method}`",
                    str(count),
                    str(len(part)),
                    mean_and_deviation([r["held_back"]["agreement"] for r in part]),
                    mean_and_deviation([r["held_back"]["kl"] for r in part], 4),
                    mean_and_deviation([t["agreement"] for t in tested]),
                    mean_and_deviation([t["score"] for t in tested]),
                    f"{statistics.fmean(r['images_seconds'] for r in part):.0f}",
                    f"{statistics.fmean(r['seconds'] for r in part):.0f}",
                ]
            )
        document.parts.append(Grid(heads, table))
    return document


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = command_line(__doc__, NEEDS)
    command.add_argument("--data", type=Path, help="folder of models and images")
    command.add_argument("--model", nargs="+", choices=CLASSIFIERS, default=list(CLASSIFIERS))
    command.add_argument("--method", nargs="+", default=["pwlq+gptq"])
    command.add_argument("--bits", nargs="+", default=["4/8", "4/4"])
    command.add_argument("--images", nargs="+", type=int, help="default: the field benchmark's")
    command.add_argument("--seeds", nargs="+", type=int, default=[0])
    command.add_argument("--test", action="store_true", help="measure on test images, too")
    command.add_argument("--cache", type=Path, default=Path(".field-cache"))
    command.add_argument("--out", type=Path, default=OUT)
    command.add_argument("--tables", action="store_true", help="write the tables and stop")
    return command


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, then write the tables."""
    command = parser()
    args = command.parse_args(argv)
    if not args.tables and args.data is None:
        command.error("--data must name the folder of models and images")
    done = {key(row["job"]) for row in read_rows(args.out)}
    for model in [] if args.tables else args.model:
        bench: Bench | None = None
        for seed in args.seeds:
            for count in args.images or [SYNTHETIC[model]]:
                for method in args.method:
                    for bits in args.bits:
                        of = {**job(model, method, bits, seed), "count": count}
                        if key(of) in done:
                            continue
                        bench = bench or Bench(model, args)
                        row = bench.run(of)
                        append_row(args.out, row)
                        print(model, method, bits, count, seed, row["held_back"], flush=True)
    rows = read_rows(args.out)
    if rows:
        args.out.with_suffix(".md").write_text(page(rows).markdown())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
