"""The page and the curves of `benchmarks.adversary`."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from benchmarks.tables import Grid, Page, mean_and_spread
from zaq_plugin.report.charts import DASHES, SERIES, Chart, width_of
from zaq_plugin.report.scales import Scale

EPOCH = 300
INTRODUCTION = """Written by `python -m benchmarks.adversary`, which says in its first lines what is
compared; rows in `adversary.jsonl`, the curves in `docs/figures/adversary.svg`. A network of 6,000
weights on scikit-learn's digits; all layers quantized, uniform asymmetric weights per channel
with the clip of least squared error (MAC bits = stored bits), activations per tensor, the network's
input at 8 bits. **First step**, **last step** and **handed back** are agreement with the float
network on the 599 held-out digits, which chose nothing: after one step of training, after all of
them, and of the state that the judge chose on synthetic images. One standard error is 0.9 points at
95 %. Means over seeds, with the lowest and the highest. **default** is no competitor at equal
steps: block-by-block reconstruction, and training for as long as the judge finds it better."""


Group = tuple[str, float, int, str]


def _groups(rows: Sequence[dict[str, Any]]) -> dict[Group, list[dict[str, Any]]]:
    groups: dict[Group, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        job = row["job"]
        groups[job["bits"], job["lr"], job["epochs"], job["source"]].append(row)
    return dict(sorted(groups.items()))


def page(rows: Sequence[dict[str, Any]]) -> Page:
    """A line for each width, length and kind of images."""
    heads = ["widths", "images", "rate", "epochs", "student steps", "seeds"]
    heads += ["first step", "last step", "handed back", "top-1 handed back"]
    heads += ["restarts", "CPU seconds"]
    table = []
    for (bits, rate, epochs, source), part in _groups(rows).items():
        seconds = statistics.fmean(row["seconds"] for row in part)
        table.append(
            [
                bits,
                source,
                f"{rate:g}" if rate else "–",
                str(epochs) if epochs else "–",
                str(max(row["curve"][-1][0] for row in part)),
                str(len(part)),
                mean_and_spread([row["curve"][0][1] for row in part], 1),
                mean_and_spread([row["end"] for row in part], 1),
                mean_and_spread([row["handed_back"] for row in part], 1),
                mean_and_spread([row["top1"] for row in part], 1),
                str(sum(len(row["restarts"]) for row in part)),
                f"{seconds:.0f}",
            ]
        )
    words = f"Float: {rows[0]['float']:.1f} % top-1."
    return Page("ZAQ's adversary at length", [INTRODUCTION, words, Grid(heads, table, "llr")])


def curves(rows: Sequence[dict[str, Any]]) -> str:
    """Agreement on the held-out digits over the epochs, a panel for widths and rate; SVG text.

    A line a kind of images, the mean over its seeds; of several lengths the longest.
    """
    groups = _groups([row for row in rows if row["job"]["source"] != "default"])
    panels = list(dict.fromkeys((bits, rate) for bits, rate, *_ in groups))
    sources = list(dict.fromkeys(row["job"]["source"] for row in rows))
    room = width_of(sources) + 26
    chart = Chart("Agreement with the float network over epochs", 250 * len(panels), 560 + room)
    for index, (bits, rate) in enumerate(panels):
        lines: dict[str, tuple[list[float], list[float]]] = {}
        for (*of, _, source), part in groups.items():  # longer ones come later
            if of == [bits, rate]:
                steps = [point[0] / EPOCH for point in part[0]["curve"]]
                each = zip(*([p[1] for p in row["curve"]] for row in part), strict=True)
                lines[source] = (steps, [statistics.fmean(values) for values in each])
        xs = [x for line, _ in lines.values() for x in line]
        ys = [y for _, line in lines.values() for y in line]
        top = 14 + 250 * index
        below = chart.height - 250 * (index + 1) + 44
        panel = chart.panel(Scale.over([0, *xs], 0.02), Scale.over(ys), top, below, right=room)
        panel.axes(f"epochs of {EPOCH} steps, rate {rate:g}", f"agreement at {bits} (%)")
        ends = []
        for source, (x, y) in lines.items():
            color = SERIES[sources.index(source) % len(SERIES)]
            panel.line(x, y, color, dash=DASHES[0], name=f"{bits}-{rate:g}-{source}")
            ends.append((source, color, x[-1], y[-1]))
        panel.name_ends(ends)
    return chart.svg()
