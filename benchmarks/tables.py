"""One writer of tables and pages; numbers over seeds or runs as their middle and their spread."""

from __future__ import annotations

import html
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

RULES = {"l": "---", "r": "---:"}
STYLE = """body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;
color:#1b1b1b;background:#fff}table{border-collapse:collapse;margin:1rem 0;display:block;
overflow-x:auto}th,td{border-bottom:1px solid #dadada;padding:.25rem .6rem;text-align:right;
white-space:nowrap;font-variant-numeric:tabular-nums}th:first-child,td:first-child{text-align:left}
td.l,th.l{text-align:left;white-space:normal}strong{color:#0072b2}
@media(prefers-color-scheme:dark){body{color:#e8e8e8;background:#161616}th,td{border-color:#3a3a3a}
strong{color:#56b4e9}}"""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], align: str = "lr") -> list[str]:
    """The lines of a Markdown table.

    Args:
        heads: Titles of the columns.
        rows: Cells of the lines, as text; ``|`` is escaped.
        align: A letter a column, ``l`` or ``r``; the last one holds for the columns behind it.

    Raises:
        ValueError: a line has another number of cells than there are columns.
    """
    letters = letters_of(heads, align)
    lines = [_line(heads), "|" + "|".join(RULES[letter] for letter in letters) + "|"]
    for row in rows:
        if len(row) != len(heads):
            raise ValueError(f"{len(row)} cells for the {len(heads)} columns {list(heads)}: {row}")
        lines.append(_line(row))
    return lines


def letters_of(heads: Sequence[str], align: str) -> str:
    """A letter for each column."""
    return align.ljust(len(heads), align[-1])[: len(heads)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def mean_and_spread(values: Sequence[float], digits: int = 2) -> str:
    """``mean (lowest to highest)``, or the only value, or a dash."""
    if not values:
        return "–"
    return spread(statistics.fmean(values), values, f".{digits}f")


def median_and_spread(values: Sequence[float], form: str = ".3g") -> str:
    """``median (lowest to highest)``, or the only value."""
    return spread(statistics.median(values), values, form)


def spread(middle: float, values: Sequence[float], form: str) -> str:
    """``middle (lowest to highest)``; the middle alone where there is one value."""
    if len(values) == 1:
        return f"{middle:{form}}"
    return f"{middle:{form}} ({min(values):{form}} to {max(values):{form}})"


def mean_and_deviation(values: Sequence[float], digits: int = 2) -> str:
    """``mean ± standard deviation``, or the only value, or nothing: for tables of many methods."""
    if not values:
        return ""
    text = f"{statistics.fmean(values):.{digits}f}"
    return f"{text} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text


@dataclass
class Grid:
    """A table of a page: what `table` takes, for Markdown and for HTML; ``**x**`` stands out."""

    heads: list[str]
    rows: list[list[str]]
    align: str = "lr"

    def html(self) -> str:
        """The table as HTML."""
        letters = letters_of(self.heads, self.align)

        def line(tag: str, cells: Sequence[str]) -> str:
            shown = zip(letters, cells, strict=True)
            return "".join(_cell(tag, letter == "l", text) for letter, text in shown)

        rows = [f"<tr>{line('td', row)}</tr>" for row in self.rows]
        return f"<table><tr>{line('th', self.heads)}</tr>{''.join(rows)}</table>"


@dataclass
class Page:
    """Headings, paragraphs and tables in order: (level, heading), text or `Grid`."""

    title: str
    parts: list[tuple[int, str] | str | Grid] = field(default_factory=list)

    def markdown(self) -> str:
        """The page as Markdown."""
        text = [f"# {self.title}", ""]
        for part in self.parts:
            if isinstance(part, Grid):
                text += table(part.heads, part.rows, part.align)
            elif isinstance(part, tuple):
                text.append("#" * part[0] + " " + part[1])
            else:
                text.append(part)
            text.append("")
        return "\n".join(text)

    def html(self) -> str:
        """The page as HTML, without anything from outside."""
        body = [f"<h1>{html.escape(self.title)}</h1>"]
        for part in self.parts:
            if isinstance(part, Grid):
                body.append(part.html())
            elif isinstance(part, tuple):
                level, heading = part
                body.append(f"<h{level}>{html.escape(heading)}</h{level}>")
            else:
                body.append(f"<p>{_rich(part)}</p>")
        return (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>'
            f"{html.escape(self.title)}</title><style>{STYLE}</style>{''.join(body)}</html>\n"
        )


def _cell(tag: str, left: bool, text: str) -> str:
    kind = ' class="l"' if left else ""
    return f"<{tag}{kind}>{_rich(text)}</{tag}>"


def _rich(text: str) -> str:
    safe = html.escape(text)
    safe = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", safe)
    return re.sub(r"`(.+?)`", r"<code>\1</code>", safe)
