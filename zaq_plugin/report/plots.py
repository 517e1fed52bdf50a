"""Plots as SVG strings: results, the theory, training, weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from zaq_plugin.pwlq.theory import CLOSED_FORM_RANGE, closed_form_breakpoint, optimal_breakpoint
from zaq_plugin.report.charts import (
    BLUE,
    DASHES,
    INK,
    MARKERS,
    SERIES,
    VERMILION,
    Chart,
    Entry,
    width_of,
)
from zaq_plugin.report.columns import bits
from zaq_plugin.report.markup import Figure
from zaq_plugin.report.records import ResultRow
from zaq_plugin.report.scales import Scale
from zaq_plugin.report.weight_plots import (
    ErrorCurve,
    error_curve,
    error_over_breakpoint,
    weight_histogram,
)

__all__ = [
    "ErrorCurve",
    "accuracy_over_bits",
    "discrepancy_curves",
    "error_curve",
    "error_over_breakpoint",
    "layer_weight_lines",
    "optimal_breakpoint_figure",
    "split_curve",
    "training_figures",
    "weight_histogram",
]

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
    floats = [(f"{r.method}: {r.top1:.2f} %", r.top1) for r in rows if r.is_float and r.top1]
    named = [text for text, _ in floats] + list(series)
    at_ends = len(series) <= MOST_LABELS
    ticks = sorted({r.weight_stored_bits for r in graded})
    tops = [
        v
        for r in graded
        for v in ((r.top1 or 0) - (r.spread or 0), (r.top1 or 0) + (r.spread or 0))
    ]
    chart = Chart(
        "Top-1 accuracy over stored bits per weight, by method",
        width=520 + (width_of(named) if at_ends else 0),
        title=title,
    )
    panel = chart.panel(
        Scale.over(ticks), Scale.over([*tops, *(v for _, v in floats)]),
        right=26 + width_of(named) if at_ends else 14,
    )  # fmt: skip
    panel.axes("stored bits per weight", "top-1 accuracy (%)", xs=[(t, bits(t)) for t in ticks])
    entries, ends = [], []
    for text, value in floats:
        panel.across(value, INK, "8 4", 1.3)
        entries.append(Entry(text, INK, "8 4"))
        ends.append((text, INK, panel.x.high, value))
    methods = list(dict.fromkeys(r.method for r in graded))
    widths = sorted({r.activation_mac_bits for r in graded}, reverse=True)
    for index, (name, members) in enumerate(series.items()):
        members = sorted(members, key=lambda r: r.weight_stored_bits)
        x = [r.weight_stored_bits for r in members]
        y = [float(r.top1 or 0.0) for r in members]
        place = methods.index(members[0].method)
        color, marker = SERIES[place % len(SERIES)], MARKERS[place % len(MARKERS)]
        dash = DASHES[widths.index(members[0].activation_mac_bits) % len(DASHES)]
        panel.line(x, y, color, dash=dash, marker=marker, name=f"series-{index}")
        for row, at, mean in zip(members, x, y, strict=True):
            if row.spread:
                panel.upright(at, color, ends=(mean - row.spread, mean + row.spread))
        entries.append(Entry(name, color, dash, marker))
        ends.append((name, color, x[-1], y[-1]))
    if at_ends:
        panel.name_ends(ends)
    else:
        chart.legend(entries)
    return chart.svg()


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


def optimal_breakpoint_figure(low: float = 1.5, high: float = 10.0) -> str:
    """Optimal breakpoint p*/m over the clip m, Gaussian and Laplacian (PWLQ, Figure 1, right).

    Solid: the exact minimiser of the expected error. Dashed: the paper's closed forms, on the
    interval that they were fitted on. m is in standard deviations.

    Returns:
        SVG text.

    Raises:
        ValueError: an empty or non-positive interval.
    """
    if not 0 < low < high:
        raise ValueError(f"expected 0 < low < high, got low={low} and high={high}.")
    m = torch.linspace(low, high, 120, dtype=torch.float64)
    begin, end = max(low, CLOSED_FORM_RANGE[0]), min(high, CLOSED_FORM_RANGE[1])
    fitted = torch.linspace(begin, end, 60, dtype=torch.float64)
    chart = Chart("Optimal breakpoint p*/m over the clip m, Gaussian and Laplacian")
    panel = chart.panel(Scale(low, high), Scale(0, 0.55))
    panel.axes("clip m (standard deviations)", "optimal breakpoint p*/m")
    entries = []
    for density, color, dash in (
        ("gaussian", BLUE, DASHES[1]),
        ("laplacian", VERMILION, DASHES[2]),
    ):
        exact = optimal_breakpoint(m, density) / m  # type: ignore[arg-type]
        name = density.capitalize()
        panel.line(m.tolist(), exact.tolist(), color, name=f"{density}-exact")
        entries.append(Entry(f"{name}, exact", color))
        if begin < end:
            closed = closed_form_breakpoint(fitted, density) / fitted  # type: ignore[arg-type]
            panel.line(
                fitted.tolist(), closed.tolist(), INK, dash=dash, width=1.4,
                name=f"{density}-closed",
            )  # fmt: skip
            entries.append(Entry(f"{name}, closed form", INK, dash))
    chart.legend(entries)
    return chart.svg()


def discrepancy_curves(
    steps: Sequence[int], curves: Mapping[str, Sequence[float]], *, best_step: int | None = None
) -> str:
    """Discrepancies over the steps, one panel each, for they differ in scale.

    Args:
        steps: shape (T,).
        curves: name, such as ``D_o`` or ``D_f``, to T values.
        best_step: the step whose state was kept; marked.

    Returns:
        SVG text.

    Raises:
        ValueError: no curve, or one whose length is not that of `steps`.
    """
    _check("discrepancy_curves", steps, curves)
    each = 130
    above = 22 if best_step is not None else 10
    height = above + each * len(curves) + 30
    chart = Chart(f"{', '.join(curves)} over the training steps", height)
    x = Scale.over([*steps, *([] if best_step is None else [best_step])], 0.03)
    for index, (name, values) in enumerate(curves.items()):
        wide = all(v > 0 for v in values) and max(values) > 50 * min(values)
        span = max(values) - min(0.0, *values) or 1.0
        y = (
            Scale(min(values) / 1.3, max(values) * 1.3, log=True)
            if wide
            else Scale(min(0.0, *values), max(values) + 0.05 * span)
        )
        top = above + each * index
        panel = chart.panel(x, y, top=top, bottom=height - top - each + 16)
        last = index == len(curves) - 1
        panel.axes("step" if last else "", name, xs=None if last else [])
        color = SERIES[index % len(SERIES)]
        panel.line(steps, values, color, marker=_marker(steps), name=f"curve-{index}")
        if best_step is not None:
            panel.upright(best_step, INK, DASHES[1])
    if best_step is not None:
        first = chart.panels[0]
        first.words(first.at_x(best_step), first.top - 5, f"kept: step {best_step}", "middle")
    return chart.svg()


def layer_weight_lines(steps: Sequence[int], weights: Mapping[str, Sequence[float]]) -> str:
    """The layers' weights λ in D_f over the steps, one line a tap (ZAQ, EMA of the softmax).

    Args:
        steps: shape (T,).
        weights: tap name to T values.

    Returns:
        SVG text.

    Raises:
        ValueError: no tap, or one whose length is not that of `steps`.
    """
    _check("layer_weight_lines", steps, weights)
    chart = Chart("Layer weights λ over the training steps")
    top = max(max(values) for values in weights.values()) or 1.0
    panel = chart.panel(Scale.over(steps, 0.03), Scale(0, 1.05 * top))
    panel.axes("step", "layer weight λ")
    entries = []
    for index, (name, values) in enumerate(weights.items()):
        color = SERIES[index % len(SERIES)]
        dash = DASHES[index // len(SERIES) % len(DASHES)]
        marker = _marker(steps)
        panel.line(steps, values, color, dash=dash, marker=marker, name=f"layer-{index}")
        entries.append(Entry(name, color, dash, marker))
    chart.legend(entries, columns=1 if width_of(list(weights)) > 220 else 2)
    return chart.svg()


def _marker(steps: Sequence[int]) -> str:
    """One point is no line, and needs a mark to be seen."""
    return "disc" if len(steps) == 1 else ""


def _check(plot: str, steps: Sequence[int], curves: Mapping[str, Sequence[float]]) -> None:
    if not curves or not len(steps):
        raise ValueError(f"{plot} needs at least one curve and one step, got none.")
    for name, values in curves.items():
        if len(values) != len(steps):
            raise ValueError(
                f"{plot}: curve '{name}' has {len(values)} values for {len(steps)} steps; "
                "record one value a step."
            )


_LAYER = "λ "


def split_curve(
    curve: Sequence[Mapping[str, float]],
) -> tuple[list[int], dict[str, list[float]], dict[str, list[float]]]:
    """Steps, terms by name, and λ by layer; what a point lacks takes the whole line away.

    Args:
        curve: ``curve`` of `zaq_plugin.zero_shot.FinetuneResult`.
    """
    steps = [int(point["step"]) for point in curve]
    names = [n for n in (curve[0] if curve else {}) if n != "step" and all(n in p for p in curve)]
    lines = {name: [float(point[name]) for point in curve] for name in names}
    layers = {n[len(_LAYER) :]: v for n, v in lines.items() if n.startswith(_LAYER)}
    return steps, {n: v for n, v in lines.items() if not n.startswith(_LAYER)}, layers


def training_figures(curve: Sequence[Mapping[str, float]]) -> list[Figure]:
    """The terms over the steps, and the layers' λ; nothing for a run without training.

    Args:
        curve: See `split_curve`.
    """
    steps, terms, layers = split_curve(curve)
    figures = []
    if terms:
        figures.append(
            Figure(
                "Teacher and student",
                discrepancy_curves(steps, terms),
                "How far the student is from its float teacher on synthetic images: terms of the "
                "training loss, then divergence and agreement on images that nothing trains on.",
            )
        )
    if layers:
        figures.append(
            Figure(
                "Where they differ",
                layer_weight_lines(steps, layers),
                "λ by layer: the softmax over layers of the distance between the two networks' "
                "channel relation maps. The largest is where the student is furthest off.",
            )
        )
    return figures
