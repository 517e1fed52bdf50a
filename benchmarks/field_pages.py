"""Tables as text: Markdown, and one HTML page without anything from outside."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field

STYLE = """body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;
color:#1b1b1b;background:#fff}table{border-collapse:collapse;margin:1rem 0;display:block;
overflow-x:auto}th,td{border-bottom:1px solid #dadada;padding:.25rem .6rem;text-align:right;
white-space:nowrap;font-variant-numeric:tabular-nums}th:first-child,td:first-child{text-align:left}
td.l,th.l{text-align:left;white-space:normal}strong{color:#0072b2}
@media(prefers-color-scheme:dark){body{color:#e8e8e8;background:#161616}th,td{border-color:#3a3a3a}
strong{color:#56b4e9}}"""


@dataclass
class Grid:
    """A table ready to print.

    Attributes:
        heads: Titles of the columns.
        rows: Cells; ``**x**`` stands out.
        left: Positions of the columns that are set flush left, the first always is.
    """

    heads: list[str]
    rows: list[list[str]]
    left: tuple[int, ...] = (0,)


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
                text += [_line(part.heads), _line([_rule(part, i) for i in range(len(part.heads))])]
                text += [_line(row) for row in part.rows]
            elif isinstance(part, tuple):
                text.append("#" * part[0] + " " + part[1])
            else:
                text.append(part)
            text.append("")
        return "\n".join(text)

    def html(self) -> str:
        """The page as HTML."""
        body = [f"<h1>{html.escape(self.title)}</h1>"]
        for part in self.parts:
            if isinstance(part, Grid):
                head = "".join(_cell("th", part, i, c) for i, c in enumerate(part.heads))
                rows = [
                    "<tr>" + "".join(_cell("td", part, i, c) for i, c in enumerate(row)) + "</tr>"
                    for row in part.rows
                ]
                body.append(f"<table><tr>{head}</tr>{''.join(rows)}</table>")
            elif isinstance(part, tuple):
                level, heading = part
                body.append(f"<h{level}>{html.escape(heading)}</h{level}>")
            else:
                body.append(f"<p>{_rich(part)}</p>")
        return (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>'
            f"{html.escape(self.title)}</title><style>{STYLE}</style>{''.join(body)}</html>\n"
        )


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _rule(table: Grid, column: int) -> str:
    return ":---" if column == 0 or column in table.left else "---:"


def _cell(tag: str, table: Grid, column: int, text: str) -> str:
    kind = ' class="l"' if column == 0 or column in table.left else ""
    return f"<{tag}{kind}>{_rich(text)}</{tag}>"


def _rich(text: str) -> str:
    safe = html.escape(text)
    safe = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", safe)
    return re.sub(r"`(.+?)`", r"<code>\1</code>", safe)
