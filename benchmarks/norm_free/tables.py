"""The page of `benchmarks.norm_free`."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from benchmarks.tables import Grid, Page, mean_and_deviation

INTRODUCTION = """Written by `python -m benchmarks.norm_free --data DIR`, which says in its first
lines how; rows in `norm_free.jsonl`. `pwlq+gptq` has its default clips, least cubed error;
`pwlq+gptq+top-k` medians of extremes, with which all sources of images were compared. Widths are
stored bits of weights / bits of activations; PWLQ weights multiply with one bit less. All layers
quantized, the network's input at 8 bits, what attention multiplies by itself in float. Figures are
agreement with the float network in percent, means over seeds with their standard deviation; one
without has one seed. **Held back** are training images that trained and calibrated nothing (400 of
CIFAR-10, 240 digits), which may choose. **Test** are images that chose nothing: 599 digits, and
2,000 of CIFAR-10's 5,000, spread over all classes. KL is the mean divergence of the classes'
probabilities on images held back, in thousandths of a nat. Seconds are CPU seconds of one thread:
making 32 images, and the method."""
ORDER = ("8/8", "6/8", "6/6", "5/8", "4/8", "4/4", "3/4")


def page(rows: Sequence[dict[str, Any]]) -> Page:
    """Two tables for each network, test images first."""
    document = Page("Images for networks without BatchNorm", [INTRODUCTION])
    networks: dict[tuple[str, str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        of = row["job"]
        networks[of["network"], of["method"], of["count"]].append(row)
    for (network, method, count), part in networks.items():
        top1 = [row["float"] for row in part if "float" in row]
        words = f", float {top1[0]:.1f} % top-1" if top1 else ""
        document.parts.append((2, f"{network}, `{method}`, {count} images{words}"))
        if top1:
            document.parts += ["Test: agreement.", _grid(part, "test", "agreement")]
        document.parts += ["Held back: agreement.", _grid(part, "held_back", "agreement")]
        document.parts += ["Held back: KL.", _grid(part, "held_back", "kl")]
    return document


def _grid(rows: Sequence[dict[str, Any]], images: str, figure: str) -> Grid:
    widths = sorted({row["job"]["bits"] for row in rows}, key=ORDER.index)
    sources = list(dict.fromkeys(row["job"]["source"] for row in rows))
    heads = ["images", *widths, "seconds: images", "seconds: method"]
    factor, digits = (1000, 2) if figure == "kl" else (1, 2)
    table = []
    for source in sources:
        mine = [row for row in rows if row["job"]["source"] == source]
        cells = [
            mean_and_deviation(
                [
                    factor * row[images][figure]
                    for row in mine
                    if row["job"]["bits"] == bits and images in row
                ],
                digits,
            )
            for bits in widths
        ]
        times = [
            f"{statistics.fmean(row[name] for row in mine):.1f}"
            for name in ("images_seconds", "seconds")
        ]
        table.append([source, *cells, *times])
    return Grid(heads, table)
