"""Results and audits as tables: for the terminal (rich), for Markdown, and as plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zaq_plugin.report.columns import (
    Column,
    audit_columns,
    audit_summary,
    notes,
    result_columns,
)
from zaq_plugin.report.records import Audit, ResultRow, tells_audits

if TYPE_CHECKING:
    from rich.table import Table


def results_table(rows: Sequence[ResultRow], title: str | None = None) -> Table:
    """The rows as a rich table, protocol and footnotes below it."""
    return rich_table(result_columns(rows), title, "\n".join(notes(rows)))


def results_markdown(rows: Sequence[ResultRow]) -> str:
    """The rows as a Markdown table, protocol and footnotes below it."""
    lines = [_markdown_text(line) + "\n" for line in notes(rows)]
    return _markdown_table(result_columns(rows)) + "\n" + "\n".join(lines)


def audit_table(audit: Audit, title: str | None = None) -> Table:
    """The audit as a rich table, its summary below it."""
    return rich_table(audit_columns(audit.records), title, audit_summary(audit))


def audit_markdown(audit: Audit) -> str:
    """The audit as a Markdown table, its summary below it."""
    return _markdown_table(audit_columns(audit.records)) + f"\n{audit_summary(audit)}\n"


@tells_audits
def audit_text(audit: Audit) -> str:
    """The audit as plain aligned text, what ``print(audit)`` shows."""
    columns = audit_columns(audit.records)
    widths = [max(len(c.title), *(len(x) for x in c.cells), 0) for c in columns]
    rows = [[c.title for c in columns], *_rows(columns)]
    lines = [_aligned(row, columns, widths) for row in rows]
    return "\n".join([*lines, audit_summary(audit)])


def _rows(columns: Sequence[Column]) -> list[list[str]]:
    return [list(row) for row in zip(*(c.cells for c in columns), strict=True)]


def _aligned(cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    padded = [
        cell.rjust(width) if column.numeric else cell.ljust(width)
        for cell, column, width in zip(cells, columns, widths, strict=True)
    ]
    return "  ".join(padded).rstrip()


def rich_table(columns: Sequence[Column], title: str | None, caption: str) -> Table:
    """Columns as a rich table.

    Args:
        columns: What to print; their heads for a narrow terminal.
        title: Above it.
        caption: Below it.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title, style="bold") if title else None,
        title_justify="left",
        caption=Text(caption, style="dim"),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
    )
    for column in columns:
        longest = max((len(word) for cell in column.cells for word in cell.split()), default=0)
        table.add_column(
            Text(column.head),
            min_width=None if column.numeric else min(longest, 14),
            justify="right" if column.numeric else "left",
            vertical="top",
            no_wrap=column.numeric,
            overflow="fold",
        )
    for row in _rows(columns):
        table.add_row(*(Text(cell.replace(" / ", "/").replace(" ± ", "±")) for cell in row))
    return table


def _markdown_text(text: str) -> str:
    """Text that Markdown shows as it is: pipes, angle brackets and line breaks made harmless."""
    text = " ".join(text.split())
    for sign in "\\`*_|<[":
        text = text.replace(sign, "\\" + sign)
    return text


def _markdown_table(columns: Sequence[Column]) -> str:
    head = [c.title for c in columns]
    rule = ["---:" if c.numeric else ":---" for c in columns]
    body = [[_markdown_text(cell) for cell in row] for row in (head, *_rows(columns))]
    return "".join("| " + " | ".join(row) + " |\n" for row in (body[0], rule, *body[1:]))
