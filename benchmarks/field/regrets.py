"""Regrets: what each default loses on each network against the best setting there.

    python -m benchmarks.field.regrets

Reads the rows of `benchmarks.field.choice` and of `benchmarks.norm_free`, runs nothing, and writes
``field_regrets.md``. A default that is right for the two networks that it was chosen on may be
wrong for others: a regret is the divergence with the default over that with the best setting tried,
both on images held back, which calibrated nothing. Settings are compared over the seeds that the
default and they share.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.norm_free.run import rows_of as norm_free_rows
from benchmarks.rows import RESULTS, command_line, read_rows
from benchmarks.tables import Grid, Page
from zaq_plugin.image_counts import CALIBRATION_IMAGES

NEEDS = """Needs nothing but the committed rows. Takes a second."""
OUT = RESULTS / "field_regrets.md"
METHOD = "pwlq+gptq"
NETWORKS = {
    "cifar10": "ResNet-20",
    "imagenet": "MobileNetV1-0.25",
    "lite0": "EfficientNet-Lite0",
    "vit-cifar": "ViT",
    "convnext-cifar": "ConvNeXt",
    "fixup-cifar": "Fixup ResNet",
    "vit-digits": "ViT, digits",
    "convnext-digits": "ConvNeXt, digits",
    "fixup-digits": "Fixup ResNet, digits",
}
INTRODUCTION = """Written by `python -m benchmarks.field.regrets` from the rows of
[field_choice.md](field_choice.md) (ResNet-20, MobileNetV1, EfficientNet-Lite0; held back are
synthetic images) and of [norm_free.md](norm_free.md) (networks without BatchNorm; held back are
real images that trained and calibrated nothing). Divergences are mean KL from the float network in
thousandths of a nat, over the seeds that all settings of a line share. **Regret** is by how many
percent the default's is above the best one's, and beside it how many points of agreement the best
setting has more, on the same images: one image is 0.25 points on CIFAR-10's, 0.4 on digits and on
ResNet-20's, 3 on Lite0's, so that most of these are nothing. A dash: not
measured, or the default itself: clips are medians of extremes at more than 4 bits where there is
BatchNorm, cubes elsewhere. Images without BatchNorm were compared with medians at 8 bits."""


@dataclass(frozen=True)
class Setting:
    """What a row must have.

    Attributes:
        label: In the table.
        method: Of the row.
        count: Calibration images; 0 takes any that the other settings have, too.
        source: Of images, of networks without BatchNorm.
    """

    label: str
    method: str = METHOD
    count: int = CALIBRATION_IMAGES
    source: str = "leaves"


@dataclass(frozen=True)
class Question:
    """A default and what else could be.

    Attributes:
        title: A heading.
        bits: Widths at which it is asked.
        settings: The default first.
    """

    title: str
    bits: tuple[str, ...]
    settings: tuple[Setting, ...]


def _clips(*others: str) -> tuple[Setting, ...]:
    rest = (Setting(name, f"{METHOD}+{part}", 0) for name, part in (o.split("=") for o in others))
    return (Setting("by network", METHOD, 0), *rest)


CLIPS = _clips(
    "medians=top-k",
    "cubes=cube-activations",
    "squares=mse-activations",
    "whole range=minmax-activations",
)


def _sources(method: str) -> tuple[Setting, ...]:
    others = ("noise", "tokens", "tokens and leaves", "patches", "attention")
    named = (*others, "patches, from noise", "attention, from noise")
    rest = (Setting(name, method, source=name) for name in named)
    return (Setting("leaves", method), *rest)


QUESTIONS = (
    Question(
        "How many images",
        ("4/8",),
        (Setting("32"), *(Setting(str(n), count=n) for n in (16, 64, 128))),
    ),
    Question("Clips of activations of 4 bits and fewer", ("4/4", "3/3"), CLIPS),
    Question("Clips of activations of 6 and 8 bits", ("8/8", "6/6", "5/8", "4/8"), CLIPS),
    Question("Error feedback", ("4/8", "4/4"), (Setting("with"), Setting("without", "pwlq"))),
    Question(
        "Images, where there is no BatchNorm, 8-bit activations",
        ("8/8", "6/8", "4/8"),
        _sources(f"{METHOD}+top-k"),
    ),
    Question("Images, where there is no BatchNorm, 4-bit activations", ("4/4",), _sources(METHOD)),
)


def _rows(results: Path) -> list[dict[str, Any]]:
    """Both files' rows with the same names."""
    found = []
    for row in read_rows(results / "field_choice.jsonl"):
        of = row["job"]
        found.append({**of, "network": of["model"], "source": "leaves", "at": row["held_back"]})
    others = norm_free_rows(results / "norm_free.jsonl")
    return found + [{**row["job"], "at": row["held_back"]} for row in others]


def by_seed(
    rows: Sequence[dict[str, Any]], network: str, bits: str, setting: Setting
) -> dict[tuple[int, int], dict[str, float]]:
    """(seed, images) to what was measured; images are 0 where the setting names their number."""
    return {
        (row["seed"], 0 if setting.count else row["count"]): row["at"]
        for row in rows
        if (row["network"], row["bits"], row["method"], row["source"])
        == (network, bits, setting.method, setting.source)
        and setting.count in (0, row["count"])
    }


def line(
    rows: Sequence[dict[str, Any]], network: str, bits: str, question: Question
) -> tuple[list[str], float] | None:
    """Cells of a network at one width, and its regret in percent; None if there is no choice."""
    found = {s.label: by_seed(rows, network, bits, s) for s in question.settings}
    default = question.settings[0].label
    known = {label: seeds for label, seeds in found.items() if seeds}
    if default not in known or len(known) < 2:
        return None
    shared = set.intersection(*(set(seeds) for seeds in known.values()))
    if not shared:
        return None
    kl = {name: statistics.fmean(at[s]["kl"] for s in shared) for name, at in known.items()}
    same = {
        name: statistics.fmean(at[s]["agreement"] for s in shared) for name, at in known.items()
    }
    best = min(kl, key=lambda name: kl[name])
    regret = 100 * (kl[default] / max(kl[best], 1e-9) - 1)
    cells = [NETWORKS[network], bits, str(len(shared))]
    cells += [f"{1000 * kl[s.label]:.2f}" if s.label in kl else "–" for s in question.settings]
    cells += ["itself" if best == default else best, f"{regret:.0f} %"]
    cells += [f"{same[best] - same[default]:+.2f}"]
    return cells, regret


def page(rows: Sequence[dict[str, Any]]) -> Page:
    """A table a question, and one of their mean regrets."""
    document = Page("Regrets of the defaults", [INTRODUCTION])
    summary: list[list[str]] = []
    tables: list[tuple[int, str] | str | Grid] = []
    for question in QUESTIONS:
        labels = [s.label for s in question.settings]
        heads = ["network", "widths", "seeds", f"{labels[0]} (default)", *labels[1:]]
        heads += ["best", "regret", "agreement, points"]
        lines = [
            found
            for bits in question.bits
            for network in NETWORKS
            if (found := line(rows, network, bits, question)) is not None
        ]
        tables += [(2, question.title), Grid(heads, [cells for cells, _ in lines], "llr")]
        if lines:
            regrets = [regret for _, regret in lines]
            points = [float(cells[-1]) for cells, _ in lines]
            summary.append(
                [
                    question.title,
                    labels[0],
                    f"{sum(cells[-3] == 'itself' for cells, _ in lines)} of {len(lines)}",
                    f"{statistics.fmean(regrets):.0f} %",
                    f"{max(regrets):.0f} %",
                    f"{statistics.fmean(points):+.2f}",
                ]
            )
    heads = ["question", "default", "best already", "mean regret", "largest", "points, mean"]
    document.parts += [Grid(heads, summary, "llr"), *tables]
    return document


def main(argv: list[str] | None = None) -> int:
    """Write the page."""
    command = command_line(__doc__, NEEDS)
    command.add_argument("--results", type=Path, default=RESULTS, help="folder of rows")
    command.add_argument("--out", type=Path, default=OUT)
    args = command.parse_args(argv)
    args.out.write_text(page(_rows(args.results)).markdown())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
