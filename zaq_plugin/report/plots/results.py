"""The plot that decides: accuracy over what is stored."""

from __future__ import annotations

from collections.abc import Sequence

from zaq_plugin.report.columns import bits
from zaq_plugin.report.plots._figure import (
    DASHES,
    INK,
    MARKERS,
    SERIES,
    figure,
    label_ends,
    plain,
    style,
    to_svg,
)
from zaq_plugin.report.records import ResultRow

MOST_LABELS = 6
"""More lines than this are told apart by a legend."""


def accuracy_over_bits(rows: Sequence[ResultRow], *, title: str = "") -> str:
    """Top-1 over *stored* bits a weight, one line a method, FP32 as a dashed line.

    Rows of one method are joined; where a method comes with several activation widths each of them
    is its own line, named by its MAC bits: colour tells the method, the dash the activation width.
    Several seeds get an error bar of one standard deviation. Up to `MOST_LABELS` lines carry their
    names at their ends; more have a legend.

    Returns:
        SVG text.

    Raises:
        ValueError: no quantized row with a top-1.
    """
    graded = [r for r in rows if not r.is_float and r.top1 is not None]
    if not graded:
        raise ValueError(
            "accuracy_over_bits needs at least one quantized row with a top1; "
            f"got {len(rows)} rows without one."
        )
    series = _series(graded)
    with style():
        legend = 0 if len(series) <= MOST_LABELS else (len(series) + 2) // 2
        fig = figure(5.4, 3.1 + 0.2 * legend)
        axes = fig.subplots()
        for row in rows:
            if row.is_float and row.top1 is not None:
                label = f"{row.method}: {row.top1:.2f} %"
                axes.axhline(row.top1, color=INK, linestyle=(0, (6, 3)), linewidth=1.1, label=label)
        methods = list(dict.fromkeys(r.method for r in graded))
        widths = sorted({r.activation_mac_bits for r in graded}, reverse=True)
        for index, (name, members) in enumerate(series.items()):
            members = sorted(members, key=lambda r: r.weight_stored_bits)
            x = [r.weight_stored_bits for r in members]
            y = [float(r.top1 or 0.0) for r in members]
            spread = [r.spread or 0.0 for r in members]
            place = methods.index(members[0].method)
            color = SERIES[place % len(SERIES)]
            axes.plot(
                x,
                y,
                marker=MARKERS[place % len(MARKERS)],
                linestyle=DASHES[widths.index(members[0].activation_mac_bits) % len(DASHES)],
                color=color,
                label=name,
                gid=f"series-{index}",
            )
            if any(spread):
                axes.errorbar(x, y, spread, fmt="none", color=color, capsize=3, linewidth=1.1)
        ticks = sorted({r.weight_stored_bits for r in graded})
        axes.set_xticks(ticks, [bits(t) for t in ticks])
        axes.margins(x=0.06)
        axes.set_xlabel("stored bits per weight")
        axes.set_ylabel("top-1 accuracy (%)")
        plain(axes)
        if title:
            axes.set_title(title)
        if len(series) <= MOST_LABELS:
            label_ends(axes)
        else:
            fig.legend(loc="outside lower center", ncols=2)
        return to_svg(fig, "Top-1 accuracy over stored bits per weight, by method")


def _series(rows: Sequence[ResultRow]) -> dict[str, list[ResultRow]]:
    widths: dict[str, set[float]] = {}
    for row in rows:
        widths.setdefault(row.method, set()).add(row.activation_mac_bits)
    series: dict[str, list[ResultRow]] = {}
    for row in rows:
        several = len(widths[row.method]) > 1
        name = f"{row.method}, A{bits(row.activation_mac_bits)}" if several else row.method
        series.setdefault(name, []).append(row)
    return series
