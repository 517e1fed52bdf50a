"""Pieces of HTML: escaped text, tables from columns, figures made safe to stand in a page."""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zaq_plugin.report.columns import Column

_THEME = {
    "#0072b2": "--fig-blue",
    "#d55e00": "--fig-vermilion",
    "#009e73": "--fig-green",
    "#cc79a7": "--fig-purple",
    "#e69f00": "--fig-orange",
    "#56b4e9": "--fig-sky",
    "#1b1b1b": "--fig-ink",
    "#6a6a6a": "--fig-muted",
    "#dadada": "--fig-grid",
}


def esc(value: object) -> str:
    """Text made harmless for HTML, in content and in attributes."""
    return html.escape(str(value), quote=True)


def document(
    title: str,
    lead: str,
    body: str,
    *,
    nav: str = "",
    footer: str = "",
    style: str = "",
) -> str:
    """A whole page, whose policy lets nothing in from outside.

    Args:
        title: of the page.
        lead: a sentence under it.
        body: HTML of the page.
        nav: HTML of the links at its top.
        footer: HTML at its end.
        style: CSS behind the report's own.
    """
    here = Path(__file__).parent
    style = (here / "page.css").read_text(encoding="utf-8") + style
    script = (here / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{digest}'"
    )
    links = f"<nav>{nav}</nav>" if nav else ""
    end = f"<footer><div>{footer}</div></footer>" if footer else ""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{esc(title)}</title><style>{style}</style></head>\n<body>"
        f'<header><div><h1>{esc(title)}</h1><p class="lead">{esc(lead)}</p>{links}</div></header>\n'
        f"<main>{body}</main>\n{end}<script>{script}</script></body></html>\n"
    )


@dataclass(frozen=True)
class Figure:
    """A picture with its words.

    Attributes:
        title: One line above it.
        body: SVG text, or a ``data:image/...`` URI.
        caption: What there is to see, in a sentence or two.
        section: The heading it stands under; figures of one section stand together.

    Raises:
        ValueError: a body that is neither, that does not parse, that holds a script, or that
            refers to anything outside itself.
    """

    title: str
    body: str
    caption: str = ""
    section: str = "Figures"

    def __post_init__(self) -> None:
        if self.body.startswith("data:image/"):
            if not re.fullmatch(r"data:image/[a-z+.-]+;base64,[A-Za-z0-9+/=]+", self.body):
                raise ValueError(f"Figure '{self.title}': the data URI is not base64.")
            return
        if not self.body.lstrip().startswith("<svg"):
            raise ValueError(
                f"Figure '{self.title}': expected SVG text or a data:image/... URI, got "
                f"{self.body[:40]!r}; the page is one file and takes no paths or addresses."
            )
        if re.search(r"<!(?!--)", self.body):
            raise ValueError(f"Figure '{self.title}': an SVG with declarations is not taken.")
        try:
            root = ElementTree.fromstring(self.body)
        except ElementTree.ParseError as error:
            raise ValueError(f"Figure '{self.title}': the SVG does not parse ({error}).") from error
        for element in root.iter():
            self._check(element)

    def _check(self, element: ElementTree.Element) -> None:
        tag = element.tag.rsplit("}", 1)[-1].lower()
        if tag in ("script", "foreignobject", "iframe"):
            raise ValueError(f"Figure '{self.title}': the SVG holds a <{tag}>, which is not taken.")
        texts = [element.text or ""] if tag == "style" else []
        for key, value in element.attrib.items():
            name = key.rsplit("}", 1)[-1].lower()
            if name.startswith("on"):
                raise ValueError(f"Figure '{self.title}': the SVG holds a handler, {name}.")
            if name in ("href", "src") and not value.startswith(("#", "data:image/")):
                raise ValueError(f"Figure '{self.title}': the SVG refers outside, to {value!r}.")
            texts.append(value)
        for text in texts:
            if re.search(r"@import|url\(\s*['\"]?(?!#|['\"]?data:image/)", text):
                raise ValueError(f"Figure '{self.title}': the SVG's style refers outside.")

    def to_html(self, index: object, kind: str = "") -> str:
        """The figure as HTML.

        Args:
            index: keeps the ids of two SVGs on one page apart.
            kind: a CSS class.
        """
        picture = (
            f'<img alt="{esc(self.title)}" src="{esc(self.body)}">'
            if self.body.startswith("data:")
            else _inline_svg(self.body, f"f{index}-")
        )
        caption = f"<figcaption>{esc(self.caption)}</figcaption>" if self.caption else ""
        style = f' class="{esc(kind)}"' if kind else ""
        return f"<figure{style}><h3>{esc(self.title)}</h3>{picture}{caption}</figure>"


def _inline_svg(svg: str, prefix: str) -> str:
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)
    own = set(re.findall(r'\sid="([^"]+)"', svg))
    used = own & set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))

    def name(match: re.Match[str]) -> str:
        return f' id="{prefix}{match[1]}"' if match[1] in used else ""

    svg = re.sub(r'\s+id="([^"]+)"', name, svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}", svg)

    def lead(match: re.Match[str]) -> str:  # links to elsewhere in the page stay
        return f'href="#{prefix if match[1] in own else ""}{match[1]}"'

    svg = re.sub(r'(?:xlink:)?href="#([^"]+)"', lead, svg)
    svg = re.sub(
        "|".join(_THEME), lambda variable: f"var({_THEME[variable[0]]},{variable[0]})", svg
    )
    return svg.replace("<svg ", '<svg preserveAspectRatio="xMidYMid meet" ', 1)


def cards(told: Iterable[tuple[str, str, str]]) -> str:
    """Numbers to be seen first: what each is, the value, and a note below; nothing for none."""
    items = "".join(
        f'<div class="card"><dt>{esc(title)}</dt><dd class="value">{esc(value)}</dd>'
        f'<dd class="note">{esc(note)}</dd></div>'
        for title, value, note in told
    )
    return f'<dl class="cards">{items}</dl>' if items else ""


def table(
    columns: Sequence[Column],
    *,
    row_class: Callable[[int], str] = lambda _: "",
    cell: Callable[[int, Column, str], str] | None = None,
    caption: str = "",
    kind: str = "",
) -> str:
    """Columns as a sortable HTML table; the first column holds the rows' heads.

    Args:
        columns: what to print.
        row_class: row number to CSS classes.
        cell: (row, column, escaped text) to the HTML that stands in the cell.
        caption: for screen readers.
        kind: a further CSS class.
    """
    heads = "".join(f'<th scope="col"{_class(c)}>{_head(c.title)}</th>' for c in columns)
    lines = []
    for row in range(len(columns[0].cells)):
        cells = []
        for index, column in enumerate(columns):
            text = esc(column.cells[row])
            inner = cell(row, column, text) if cell else text
            tag, scope = ("th", ' scope="row"') if index == 0 else ("td", "")
            key = esc(_key(column.keys[row]))
            cells.append(f'<{tag}{scope}{_class(column)} data-k="{key}">{inner}</{tag}>')
        classes = row_class(row)
        attribute = f' class="{esc(classes)}"' if classes else ""
        lines.append(f"<tr{attribute}>{''.join(cells)}</tr>")
    label = f' aria-label="{esc(caption)}"' if caption else ""
    classes = esc(f"sortable {kind}".strip())
    return (
        f'<div class="scroll"><table class="{classes}"{label}><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _head(title: str) -> str:
    return esc(title).replace(" / ", "&nbsp;/&nbsp;")


def _class(column: Column) -> str:
    return ' class="num"' if column.numeric else ""


def _key(value: float | str | None) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and math.isinf(value):
        return "1e999" if value > 0 else "-1e999"
    return str(value)


def pairs(values: Mapping[str, Any], mono: bool = False) -> str:
    """A mapping as a two-column list."""
    style = ' class="mono"' if mono else ""
    items = "".join(f"<dt>{esc(k)}</dt><dd{style}>{esc(v)}</dd>" for k, v in values.items())
    return f'<dl class="kv">{items}</dl>'
