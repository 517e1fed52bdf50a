"""Charts as SVG text: axes, lines, bars and marks. Equal for equal data, told apart in print.

Colours are a light page's; `zaq_plugin.report.markup` makes them the reader's theme's, light
or dark, where a chart stands in a page. Lengths are in points of the picture, y downwards.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from zaq_plugin.report.scales import Scale

# Okabe and Ito's palette: told apart under every common colour blindness, and by grey value.
BLUE = "#0072b2"
VERMILION = "#d55e00"
GREEN = "#009e73"
PURPLE = "#cc79a7"
ORANGE = "#e69f00"
SKY = "#56b4e9"
SERIES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
INK = "#1b1b1b"
MUTED = "#6a6a6a"
GRID = "#dadada"
DASHES = ("", "7 3", "1.5 2", "8 3 1.5 3")
SHAPES = {
    "disc": "M -4 0 A 4 4 0 1 0 4 0 A 4 4 0 1 0 -4 0 z",
    "square": "M -3.6 -3.6 H 3.6 V 3.6 H -3.6 z",
    "triangle": "M 0 -4.6 L 4.4 3.6 H -4.4 z",
    "diamond": "M 0 -5 L 5 0 L 0 5 L -5 0 z",
    "wedge": "M 0 4.6 L 4.4 -3.6 H -4.4 z",
    "plus": "M -1.5 -4.4 H 1.5 V -1.5 H 4.4 V 1.5 H 1.5 V 4.4 H -1.5 V 1.5 H -4.4 V -1.5 H -1.5 z",
}
MARKERS = tuple(SHAPES)
WIDTH, LEFT, RIGHT, BELOW = 520, 62, 14, 40
_FONTS = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif"
_LETTER, _LINE = 6.7, 17
"""Width of a letter, on the mean, and height of a line of text."""


Ticks = Sequence[tuple[float, str]]


class Panel:
    """A pair of axes; `Chart.panel` makes it."""

    def __init__(self, x: Scale, y: Scale, left: float, top: float, width: float, height: float):
        self.x, self.y = x, y
        self.left, self.top, self.right, self.bottom = left, top, left + width, top + height
        self.parts: list[str] = []
        self.shapes: set[str] = set()

    def at(self, x: float, y: float) -> tuple[float, float]:
        """A point of the picture."""
        return self.at_x(x), self.at_y(y)

    def at_x(self, value: float) -> float:
        """Of the picture."""
        return round(self.left + (self.right - self.left) * self.x.share(value), 4)

    def at_y(self, value: float) -> float:
        """Of the picture."""
        return round(self.bottom - (self.bottom - self.top) * self.y.share(value), 4)

    def axes(
        self, x: str = "", y: str = "", xs: Ticks | None = None, ys: Ticks | None = None
    ) -> None:
        """The lines behind the data, ticks and words; an empty list of ticks leaves them away."""
        for index, (value, words) in enumerate(self.y.ticks if ys is None else ys):
            at = self.at_y(value)
            tick = f'<path d="M {self.left} {at} H {self.right}" stroke="{GRID}"/>'
            self.parts.append(
                f'<g id="ytick_{index + 1}">{tick}{text(self.left - 7, at + 4, words, "end")}</g>'
            )
        for index, (value, words) in enumerate(self.x.ticks if xs is None else xs):
            at = self.at_x(value)
            tick = f'<path d="M {at} {self.bottom} v 4" stroke="{MUTED}"/>'
            below = text(at, self.bottom + 16, words, "middle")
            self.parts.append(f'<g id="xtick_{index + 1}">{tick}{below}</g>')
        self.parts.append(
            f'<path d="M {self.left} {self.bottom} H {self.right}" stroke="{MUTED}"/>'
        )
        if x:
            self.parts.append(text((self.left + self.right) / 2, self.bottom + 34, x, "middle"))
        if y:
            middle = (self.top + self.bottom) / 2
            turn = f' transform="rotate(-90 14 {middle:g})"'
            self.parts.append(text(14, middle, y, "middle", more=turn))

    def line(
        self,
        xs: Sequence[float],
        ys: Sequence[float],
        color: str,
        *,
        dash: str = "",
        marker: str = "",
        width: float = 2.2,
        name: str = "",
    ) -> None:
        """A line through points; one point needs a marker to be seen.

        Args:
            xs, ys: (n,) each.
            color: Of the palette.
            dash: One of `DASHES`.
            marker: One of `MARKERS` at every point; empty for none.
            width: Of the line.
            name: Of its group in the picture.
        """
        points = [self.at(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]
        path = " L ".join(f"{x:g} {y:g}" for x, y in points)
        style = f"fill: none; stroke: {color}; stroke-width: {width:g}; stroke-linejoin: round"
        style += f"; stroke-dasharray: {dash}" if dash else ""
        marks = "".join(self._mark(x, y, color, marker) for x, y in points) if marker else ""
        self.parts.append(f'<g{_id(name)}><path d="M {path}" style="{style}"/>{marks}</g>')

    def mark(
        self, x: float, y: float, color: str, shape: str = "disc", *, hollow: bool = False,
        name: str = "",
    ) -> None:  # fmt: skip
        """One mark at a point."""
        drawn = self._mark(*self.at(x, y), color, shape, hollow)
        self.parts.append(f"<g{_id(name)}>{drawn}</g>")

    def _mark(self, x: float, y: float, color: str, shape: str, hollow: bool = False) -> str:
        self.shapes.add(shape)
        look = f'fill="none" stroke="{color}" stroke-width="1.5"' if hollow else f'fill="{color}"'
        return f'<use href="#mark-{shape}" x="{x:g}" y="{y:g}" {look}/>'

    def across(self, y: float, color: str, dash: str = "", width: float = 1.5) -> None:
        """A horizontal line through the panel."""
        self._rule(f"M {self.left} {self.at_y(y)} H {self.right}", color, dash, width)

    def upright(
        self, x: float, color: str, dash: str = "", ends: tuple[float, float] | None = None
    ) -> None:
        """A vertical line, through the panel or between two values of y."""
        top, bottom = (self.top, self.bottom) if ends is None else map(self.at_y, ends)
        self._rule(f"M {self.at_x(x)} {top} V {bottom}", color, dash, 1.4)

    def _rule(self, path: str, color: str, dash: str, width: float) -> None:
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<path d="{path}" stroke="{color}" stroke-width="{width:g}"{dashed}/>')

    def stems(self, xs: Sequence[float], color: str, name: str = "") -> None:
        """Vertical lines over the panel's height, one group."""
        paths = "".join(
            f'<path d="M {self.at_x(x):g} {self.bottom:g} V {self.top:g}" stroke="{color}" '
            'stroke-width="2"/>'
            for x in xs
        )
        self.parts.append(f"<g{_id(name)}>{paths}</g>")

    def bars(self, edges: Sequence[float], heights: Sequence[float], color: str) -> None:
        """A histogram: (n + 1,) edges and (n,) heights over zero."""
        base = self.at_y(0)
        for low, high, value in zip(edges[:-1], edges[1:], heights, strict=True):
            a, b, top = self.at_x(low), self.at_x(high), self.at_y(value)
            self.parts.append(
                f'<path d="M {a:g} {base:g} L {a:g} {top:g} L {b:g} {top:g} L {b:g} {base:g} z" '
                f'style="fill: {color}; opacity: 0.55"/>'
            )

    def words(
        self, x: float, y: float, words: str, anchor: str = "start", color: str = INK
    ) -> None:
        """Text at a point of the picture."""
        self.parts.append(text(x, y, words, anchor, color))

    def name_ends(self, ends: Sequence[tuple[str, str, float, float]]) -> None:
        """Names beside the ends of lines, in their colours; a thin leader where one had to move.

        Args:
            ends: Name, colour, and the end's x and y, in the axes' units.
        """
        placed = sorted(((self.at_y(y), self.at_x(x), n, c) for n, c, x, y in ends), reverse=True)
        at = math.inf
        heights = []
        for y, *_ in placed:  # from the lowest up
            at = min(y, at - _LINE)
            heights.append(at)
        over = self.top - heights[-1] if heights else 0.0
        for index, height in enumerate(heights):
            lowest = self.bottom - index * _LINE
            heights[index] = min(height + over, lowest) if over > 0 else height
        for (y, x, name, color), height in zip(placed, heights, strict=True):
            begin = self.right + 12
            path = f"M {x + 3:g} {y:g} L {begin - 3:g} {height:g}"
            self.parts.append(f'<path d="{path}" stroke="{color}" stroke-width="0.7"/>')
            self.words(begin, height + 4, name, color=color)


@dataclass(frozen=True)
class Entry:
    """A line of a legend."""

    name: str
    color: str
    dash: str = ""
    marker: str = ""
    hollow: bool = False
    line: bool = True


class Chart:
    """A picture with panels.

    Args:
        label: What a screen reader says.
        height: Of it, the legend not counted.
        width: Of it.
        title: Above its panels.
    """

    def __init__(self, label: str, height: float = 300, width: float = WIDTH, title: str = ""):
        self.label, self.width, self.height, self.title = label, width, height, title
        self.panels: list[Panel] = []
        self._more = ""

    def panel(
        self,
        x: Scale,
        y: Scale,
        top: float = 14,
        bottom: float = BELOW,
        *,
        left: float = LEFT,
        right: float = RIGHT,
    ) -> Panel:
        """A panel so far from the picture's sides; a title moves it down."""
        top += 22 if self.title and top < 36 else 0
        size = self.width - left - right, self.height - top - bottom
        self.panels.append(Panel(x, y, left, top, *size))
        return self.panels[-1]

    def legend(self, entries: Sequence[Entry], columns: int = 2) -> None:
        """Names below the picture, which grows by as much."""
        step = (self.width - 20) / columns
        scratch = Panel(Scale(0, 1), Scale(0, 1), 0, 0, 1, 1)
        for index, entry in enumerate(entries):
            x = 12 + step * (index % columns)
            y = self.height + 10 + _LINE * (index // columns)
            dashed = f' stroke-dasharray="{entry.dash}"' if entry.dash else ""
            if entry.line:
                self._more += f'<path d="M {x:g} {y:g} h 24" stroke="{entry.color}"'
                self._more += f' stroke-width="2"{dashed}/>'
            if entry.marker:
                self._more += scratch._mark(x + 12, y, entry.color, entry.marker, entry.hollow)
            self._more += text(x + 31, y + 4, entry.name)
        self.height += 12 + _LINE * -(-len(entries) // columns)
        self.panels[0].shapes |= scratch.shapes

    def svg(self) -> str:
        """The picture: stands alone, and refers to nothing outside."""
        used = sorted(set().union(*(panel.shapes for panel in self.panels)))
        marks = "".join(f'<path id="mark-{name}" d="{SHAPES[name]}"/>' for name in used)
        body = f"<defs>{marks}</defs>" if marks else ""
        for index, panel in enumerate(self.panels):
            body += f'\n<g id="axes_{index + 1}">' + "\n".join(panel.parts) + "</g>"
        if self.title:
            body += text(self.panels[0].left, 16, self.title, more=' font-size="13"')
        return picture(self.width, self.height, body + self._more, self.label)


def picture(width: float, height: float, body: str, label: str) -> str:
    """SVG text around a body.

    Args:
        width, height: Of the picture.
        body: Its elements.
        label: What a screen reader says.
    """
    said = html.escape(label, quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{said}" font-size="12" font-family="{_FONTS}">'
        f"<title>{said}</title>{body}</svg>"
    )


def text(
    x: float, y: float, words: str, anchor: str = "start", color: str = INK, more: str = ""
) -> str:
    """Words at a point."""
    said = html.escape(words, quote=True)
    place = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{color}"'
    return f"<text {place}{more}>{said}</text>"


def width_of(words: Sequence[str]) -> float:
    """About how much room the longest takes."""
    return _LETTER * max(map(len, words), default=0)


def _id(name: str) -> str:
    return f' id="{name}"' if name else ""
