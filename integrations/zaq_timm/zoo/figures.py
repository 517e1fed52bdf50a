"""The pictures of the zoo's page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zaq_plugin.report.charts import (
    BLUE,
    INK,
    MUTED,
    SERIES,
    VERMILION,
    Chart,
    picture,
    text,
    width_of,
)
from zaq_plugin.report.markup import esc
from zaq_plugin.report.scales import Scale, log_ticks, ticks


@dataclass(frozen=True)
class Dot:
    """A model in the scatter.

    Attributes:
        name: its name.
        link: where a click leads, within the page.
        x: its size in bytes.
        y: its value in percent.
        base: the float model's value, if known.
    """

    name: str
    link: str
    x: float
    y: float
    base: float | None = None


def size_scatter(dots: Sequence[Dot], what: str) -> str:
    """Every model: its value over its size, the float model's value above it where known.

    Args:
        dots: the models.
        what: the vertical axis's words, such as ``top-1 (%)``.
    """
    values = [v for d in dots for v in (d.y, d.base) if v is not None]
    low, high = _spread(min(values), max(values), 0.0, 100.0)
    small, large = min(d.x for d in dots) / 1.25, max(d.x for d in dots) * 1.25
    chart = Chart(f"{what} over size, {len(dots)} models", 380, 1080)
    panel = chart.panel(Scale(small, large, log=True), Scale(low, high))
    sizes = [(v, _megabytes(v)) for v in log_ticks(small, large)]
    panel.axes("size of the quantized model", what, xs=sizes)
    named = len(dots) <= 14
    for dot in dots:
        x, y = panel.at(dot.x, dot.y)
        said = f"{dot.name}: {dot.y:.2f} %, {_megabytes(dot.x)}"
        body = f'<a href="#{esc(dot.link)}" class="dot"><title>{esc(said)}</title>'
        if dot.base is not None:
            base = panel.at_y(dot.base)
            body += f'<path d="M {x} {base} V {y}" stroke="{MUTED}" stroke-dasharray="2 2"/>'
            body += f'<circle cx="{x}" cy="{base}" r="3.5" fill="none" stroke="{MUTED}"/>'
        body += f'<circle cx="{x}" cy="{y}" r="5.5" fill="{BLUE}" fill-opacity=".75"/>'
        if named:
            end = x > chart.width * 0.8
            body += text(x + (-9 if end else 9), y + 4, dot.name, "end" if end else "start")
        panel.parts.append(body + "</a>")
    return chart.svg()


def sensitivity_bars(layers: Sequence[tuple[str, float]], shown: int = 24) -> str:
    """The layers that mind most, as bars, on a common scale.

    Args:
        layers: name and divergence when that layer alone is quantized.
        shown: how many, the largest first.
    """
    rows = sorted(layers, key=lambda pair: -pair[1])[:shown]
    top = max((value for _, value in rows), default=0.0) or 1.0
    line, left, width = 19, 270, 660
    body = ""
    for index, (name, value) in enumerate(rows):
        y = 4 + index * line
        short = name if len(name) <= 40 else "…" + name[-39:]
        span = max(1.0, (width - left - 90) * max(value, 0.0) / top)
        body += text(left - 8, y + 12, short, "end")
        body += (
            f'<rect x="{left}" y="{y + 2}" width="{span:.1f}" height="13" rx="2" fill="{BLUE}" '
            f'fill-opacity=".75"><title>{esc(name)}: {value:.3g} nats</title></rect>'
        )
        body += text(left + span + 6, y + 12, f"{value:.2g}", color=MUTED)
    return picture(width, 8 + line * len(rows), body, "sensitivity of layers")


def level_stems(levels: Sequence[float], counts: Sequence[int], spec: str) -> str:
    """A channel's levels, and how many of its weights sit on each."""
    reach = max((abs(v) for v in levels), default=1.0) or 1.0
    top = max(counts, default=1) or 1
    chart = Chart(f"levels of {spec}", 190)
    panel = chart.panel(Scale(-reach * 1.05, reach * 1.05), Scale(0, top * 1.08))
    marks = [(v, f"{v:.2g}") for v in (-reach, 0.0, reach)]
    panel.axes("weight", "weights on it", xs=marks)
    for value, count in zip(levels, counts, strict=True):
        x = panel.at_x(value)
        drawn = f'<path d="M {x} {panel.bottom} v 5" stroke="{VERMILION}" stroke-width="1.2"/>'
        if count:
            stem = f"M {x} {panel.bottom} V {panel.at_y(count)}"
            drawn += f'<path d="{stem}" stroke="{BLUE}" stroke-width="3.2">'
            drawn += f"<title>{value:.4g}: {count}</title></path>"
        panel.parts.append(drawn)
    return chart.svg()


def frontier_line(points: Sequence[tuple[float, float, bool]]) -> str:
    """The Pareto frontier: summed divergence over stored bits, the chosen point marked.

    Args:
        points: stored bits a weight, divergence, whether it was chosen.
    """
    xs = [x for x, _, _ in points]
    ys = [max(y, 1e-12) for _, y, _ in points]
    low = math.floor(math.log10(min(ys)))
    high = max(math.ceil(math.log10(max(ys))), low + 1)
    chart = Chart("Pareto frontier", 240)
    panel = chart.panel(Scale(min(xs) - 0.1, max(xs) + 0.1), Scale(10.0**low, 10.0**high, log=True))
    powers = range(low, high + 1, max(1, (high - low) // 4))
    panel.axes(
        "mean stored bits a weight",
        "divergence (nats)",
        xs=[(v, f"{v:g}") for v in ticks(min(xs), max(xs))],
        ys=[(10.0**power, f"1e{power}") for power in powers],
    )
    panel.line(xs, ys, BLUE, width=1.8)
    for (x, _, chosen), y in zip(points, ys, strict=True):
        if chosen:
            panel.mark(x, y, VERMILION)
    return chart.svg()


def step_lines(steps: Sequence[int], lines: Mapping[str, Sequence[float]], what: str) -> str:
    """Values over training steps, each line with its name at its end.

    Args:
        steps: (T,).
        lines: name to T values.
        what: the vertical axis.
    """
    top = max((max(values) for values in lines.values()), default=1.0) or 1.0
    first, last = min(steps), max(steps)
    room = 26 + width_of(list(lines))
    chart = Chart(f"{what} over the training steps", 240, 400 + room)
    panel = chart.panel(Scale(first, max(last, first + 1)), Scale(0, top * 1.05), right=room)
    panel.axes("step", what, xs=[(float(s), f"{s}") for s in sorted({first, last})])
    ends = []
    colors = (*SERIES[:4], INK, MUTED)
    for index, (name, values) in enumerate(lines.items()):
        color = colors[index % len(colors)]
        panel.line(steps, values, color, width=1.8)
        panel.mark(last, values[-1], color)
        ends.append((name, color, float(last), values[-1]))
    panel.name_ends(ends)
    return chart.svg()


def _spread(low: float, high: float, floor: float, ceiling: float) -> tuple[float, float]:
    room = max((high - low) * 0.1, 1.0)
    return max(floor, low - room), min(ceiling + 1.0, high + room)


def _megabytes(value: float) -> str:
    return (
        f"{value / 1e6:g} MB"
        if value >= 1e5 and value % 1e4 == 0
        else (f"{value / 1e6:.2f} MB" if value >= 1e6 else f"{value / 1e3:.4g} kB")
    )
