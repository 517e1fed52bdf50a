"""The look that all plots share, and the way from a matplotlib figure to an SVG string.

matplotlib is imported here and nowhere else, when the first plot is drawn. No pyplot, no global
state: a plot neither reads nor changes the user's matplotlib settings.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

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
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)))

_SETTINGS: dict[str, Any] = {
    "svg.hashsalt": "zaq_plugin.report",
    "svg.fonttype": "none",
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.0,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "axes.formatter.useoffset": False,
    "text.color": INK,
    "text.usetex": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.9,
    "lines.markersize": 5.5,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "legend.labelcolor": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
_FONT_STACK = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif"
_Plot = TypeVar("_Plot", bound=Callable[..., Any])


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib, which is not installed; install it with: "
            "pip install 'zaq-plugin[report]'. Tables and the HTML page work without it."
        ) from error
    return matplotlib


@contextmanager
def style() -> Iterator[None]:
    """The shared look, for the time of one plot.

    Raises:
        ImportError: matplotlib is missing; the text says how to get it.
    """
    matplotlib = _matplotlib()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def figure(width: float = 5.4, height: float = 3.5) -> Any:
    """An empty figure of the given size in inches, laid out by itself."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def label_ends(axes: Any) -> None:
    """Each line's label at its right end, in its colour, with a thin leader where it had to move.

    Labels are spread over the height so that none covers another.
    """
    lines = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
    bottom, top = axes.get_ylim()
    ends = []
    for line in lines:
        level = len(set(line.get_ydata())) == 1 and line.get_transform() != axes.transData
        x = 1.0 if level else axes.transLimits.transform((line.get_xdata()[-1], 0))[0]
        ends.append((float(line.get_ydata()[-1] - bottom) / (top - bottom), float(x), line))
    ends.sort(key=lambda end: end[0])
    gap = 0.075
    places = [height for height, _, _ in ends]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    over = places[-1] - 1.0 if places else 0.0
    for i in reversed(range(len(places))):
        limit = 1.0 if i == len(places) - 1 else places[i + 1] - gap
        places[i] = min(places[i], limit) if over > 0 else places[i]
    for place, (height, x, line) in zip(places, ends, strict=True):
        color = line.get_color()
        axes.annotate(
            line.get_label(),
            xy=(x, height),
            xytext=(1.03, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            fontsize=9.0,
            color=color,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 0.6,
                "relpos": (0, 0.5),  # from the label's left edge, across no other label
                "shrinkA": 1,
                "shrinkB": 3,
            },
        )


def to_svg(fig: Any, label: str) -> str:
    """The figure as a stand-alone SVG string, equal for equal data.

    Text stays text, there is no date and nothing refers to the outside. `label` is what a screen
    reader says.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    FigureCanvasSVG(fig)
    buffer = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    fig.savefig(buffer, format="svg", metadata=metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", rf"font-size: \1px; font-family: {_FONT_STACK}", svg)
    text = html.escape(label, quote=True)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{text}" ', 1)
    end = svg.index(">", svg.index("<svg")) + 1
    return f"{svg[:end]}\n <title>{text}</title>{svg[end:]}"


def plain(axes: Any, grid: str = "y") -> None:
    """Draws the grid lines of one direction, and no more ink than that."""
    axes.grid(visible=True, axis=grid)
    axes.tick_params(length=3)
