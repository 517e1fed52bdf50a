"""Small pictures for the zoo's page, as SVG that takes the page's colours; nothing else needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zaq_plugin.report._html import esc

_BLUE = "var(--fig-blue,#0072b2)"
_VERMILION = "var(--fig-vermilion,#d55e00)"
_INK = "var(--fig-ink,#1b1b1b)"
_MUTED = "var(--fig-muted,#6a6a6a)"
_GRID = "var(--fig-grid,#dadada)"
_LINES = (_BLUE, _VERMILION, "var(--fig-green,#009e73)", "var(--fig-purple,#cc79a7)", _INK, _MUTED)


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


class _Frame:
    """Maps values to a picture's points; x may be logarithmic."""

    def __init__(
        self, x: tuple[float, float], y: tuple[float, float], size: tuple[int, int], log: bool
    ) -> None:
        self.left, self.top, self.bottom, self.right = 58, 12, 40, 14
        self.width, self.height = size
        self.log = log
        self.x0, self.x1 = (math.log10(v) for v in x) if log else x
        self.y0, self.y1 = y

    def x(self, value: float) -> float:
        at = math.log10(value) if self.log else value
        span = self.width - self.left - self.right
        return round(self.left + span * (at - self.x0) / max(self.x1 - self.x0, 1e-12), 1)

    def y(self, value: float) -> float:
        span = self.height - self.top - self.bottom
        return round(
            self.height - self.bottom - span * (value - self.y0) / max(self.y1 - self.y0, 1e-12), 1
        )

    def axes(
        self, xs: Sequence[tuple[float, str]], ys: Sequence[tuple[float, str]], x: str, y: str
    ) -> str:
        base, right = self.height - self.bottom, self.width - self.right
        parts = []
        for value, text in ys:
            at = self.y(value)
            parts.append(f'<path d="M{self.left} {at}H{right}" stroke="{_GRID}"/>')
            parts.append(_text(self.left - 7, at + 4, text, "end"))
        for value, text in xs:
            at = self.x(value)
            parts.append(f'<path d="M{at} {base}v4" stroke="{_MUTED}"/>')
            parts.append(_text(at, base + 16, text, "middle"))
        parts.append(f'<path d="M{self.left} {base}H{right}" stroke="{_MUTED}"/>')
        parts.append(_text((self.left + right) / 2, self.height - 6, x, "middle"))
        middle = (self.top + base) / 2
        parts.append(
            f'<text x="14" y="{middle}" text-anchor="middle" fill="{_INK}" '
            f'transform="rotate(-90 14 {middle})">{esc(y)}</text>'
        )
        return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str = "start", color: str = _INK) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{color}">{esc(text)}</text>'


def _svg(size: tuple[int, int], body: str, label: str) -> str:
    width, height = size
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{esc(label)}" '
        f'font-size="12">{body}</svg>'
    )


def size_scatter(dots: Sequence[Dot], what: str) -> str:
    """Every model: its value over its size, the float model's value above it where known.

    Args:
        dots: the models.
        what: the vertical axis's words, such as ``top-1 (%)``.
    """
    size = (1080, 380)
    values = [v for d in dots for v in (d.y, d.base) if v is not None]
    low, high = _spread(min(values), max(values), 0.0, 100.0)
    small, large = min(d.x for d in dots) / 1.25, max(d.x for d in dots) * 1.25
    frame = _Frame((small, large), (low, high), size, log=True)
    body = frame.axes(
        [(v, _megabytes(v)) for v in _log_ticks(small, large)],
        [(v, f"{v:g}") for v in _ticks(low, high)],
        "size of the quantized model",
        what,
    )
    named = len(dots) <= 14
    for dot in dots:
        x, y = frame.x(dot.x), frame.y(dot.y)
        text = f"{dot.name}: {dot.y:.2f} %, {_megabytes(dot.x)}"
        body += f'<a href="#{esc(dot.link)}" class="dot"><title>{esc(text)}</title>'
        if dot.base is not None:
            base = frame.y(dot.base)
            body += f'<path d="M{x} {base}V{y}" stroke="{_MUTED}" stroke-dasharray="2 2"/>'
            body += f'<circle cx="{x}" cy="{base}" r="3.5" fill="none" stroke="{_MUTED}"/>'
        body += f'<circle cx="{x}" cy="{y}" r="5.5" fill="{_BLUE}" fill-opacity=".75"/>'
        if named:
            end = x > size[0] * 0.8
            body += _text(x + (-9 if end else 9), y + 4, dot.name, "end" if end else "start")
        body += "</a>"
    return _svg(size, body, f"{what} over size, {len(dots)} models")


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
        body += _text(left - 8, y + 12, short, "end")
        body += (
            f'<rect x="{left}" y="{y + 2}" width="{span:.1f}" height="13" rx="2" fill="{_BLUE}" '
            f'fill-opacity=".75"><title>{esc(name)}: {value:.3g} nats</title></rect>'
        )
        body += _text(left + span + 6, y + 12, f"{value:.2g}", color=_MUTED)
    return _svg((width, 8 + line * len(rows)), body, "sensitivity of layers")


def level_stems(levels: Sequence[float], counts: Sequence[int], spec: str) -> str:
    """A channel's levels, and how many of its weights sit on each."""
    size = (520, 190)
    reach = max((abs(v) for v in levels), default=1.0) or 1.0
    top = max(counts, default=1) or 1
    frame = _Frame((-reach * 1.05, reach * 1.05), (0, top * 1.08), size, log=False)
    ticks = [(v, f"{v:.2g}") for v in (-reach, 0.0, reach)]
    body = frame.axes(ticks, [(v, f"{v:g}") for v in _ticks(0, top)], "weight", "weights on it")
    base = frame.y(0)
    for value, count in zip(levels, counts, strict=True):
        x = frame.x(value)
        body += f'<path d="M{x} {base}v5" stroke="{_VERMILION}" stroke-width="1.2"/>'
        if count:
            body += (
                f'<path d="M{x} {base}V{frame.y(count)}" stroke="{_BLUE}" stroke-width="3.2">'
                f"<title>{value:.4g}: {count}</title></path>"
            )
    return _svg(size, body, f"levels of {spec}")


def frontier_line(points: Sequence[tuple[float, float, bool]]) -> str:
    """The Pareto frontier: summed divergence over stored bits, the chosen point marked.

    Args:
        points: stored bits a weight, divergence, whether it was chosen.
    """
    size = (520, 240)
    xs = [p[0] for p in points]
    ys = [math.log10(max(p[1], 1e-12)) for p in points]
    low, high = math.floor(min(ys)), max(math.ceil(max(ys)), math.floor(min(ys)) + 1)
    frame = _Frame((min(xs) - 0.1, max(xs) + 0.1), (low, high), size, log=False)
    step = max(1, (high - low) // 4)
    body = frame.axes(
        [(v, f"{v:g}") for v in _ticks(min(xs), max(xs))],
        [(v, f"1e{v}") for v in range(low, high + 1, step)],
        "mean stored bits a weight",
        "divergence (nats)",
    )
    line = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in zip(xs, ys, strict=True))
    body += f'<polyline points="{line}" fill="none" stroke="{_BLUE}" stroke-width="1.8"/>'
    for (x, _, chosen), y in zip(points, ys, strict=True):
        if chosen:
            body += f'<circle cx="{frame.x(x)}" cy="{frame.y(y)}" r="5.5" fill="{_VERMILION}"/>'
    return _svg(size, body, "Pareto frontier")


def step_lines(steps: Sequence[int], lines: Mapping[str, Sequence[float]], what: str) -> str:
    """Values over training steps, each line with its name at its end.

    Args:
        steps: (T,).
        lines: name to T values.
        what: the vertical axis.
    """
    size = (520, 240)
    top = max((max(values) for values in lines.values()), default=1.0) or 1.0
    first, last = min(steps), max(steps)
    frame = _Frame((first, last + 0.3 * max(1, last - first)), (0, top * 1.05), size, log=False)
    marks = [(float(s), f"{s}") for s in sorted({first, last})]
    body = frame.axes(marks, [(v, f"{v:g}") for v in _ticks(0, top)], "step", what)
    for index, (name, values) in enumerate(lines.items()):
        color = _LINES[index % len(_LINES)]
        path = " ".join(f"{frame.x(s)},{frame.y(v)}" for s, v in zip(steps, values, strict=True))
        body += f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8"/>'
        body += f'<circle cx="{frame.x(last)}" cy="{frame.y(values[-1])}" r="3" fill="{color}"/>'
        body += _text(frame.x(last) + 7, frame.y(values[-1]) + 4, name, color=color)
    return _svg(size, body, f"{what} over the training steps")


def _spread(low: float, high: float, floor: float, ceiling: float) -> tuple[float, float]:
    room = max((high - low) * 0.1, 1.0)
    return max(floor, low - room), min(ceiling + 1.0, high + room)


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers within a range."""
    raw = max(high - low, 1e-9) / 5
    unit = 10 ** math.floor(math.log10(raw))
    step = unit * next((m for m in (1, 2, 5, 10) if unit * m >= raw), 10)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within a range; finer steps where those are too few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), tuple(range(10, 100))):
        ticks = [m * 10.0 ** (p - (len(steps) > 9)) for p in powers for m in steps]
        ticks = [v for v in ticks if low <= v <= high]
        if len(ticks) >= 3:
            break
    return ticks[:: max(1, -(-len(ticks) // 9))]


def _megabytes(value: float) -> str:
    return (
        f"{value / 1e6:g} MB"
        if value >= 1e5 and value % 1e4 == 0
        else (f"{value / 1e6:.2f} MB" if value >= 1e6 else f"{value / 1e3:.4g} kB")
    )
