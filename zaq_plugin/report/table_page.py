"""A page with one sortable table on it, in the look of the reports; nothing in it leads outside."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from zaq_plugin.report._html import esc, table
from zaq_plugin.report.columns import Column

_HERE = Path(__file__).parent


def render_table_page(columns: Sequence[Column], title: str, lead: str) -> str:
    """The page as HTML text.

    Args:
        columns: the table; the first holds the rows' heads.
        title: of the page.
        lead: a sentence under it.
    """
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{digest}'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{esc(title)}</title><style>{style}</style></head>\n<body>"
        f'<header><div><h1>{esc(title)}</h1><p class="lead">{esc(lead)}</p></div></header>\n'
        f"<main><section><h2>Layers</h2>{table(columns, caption=title)}</section></main>\n"
        f"<script>{script}</script></body></html>\n"
    )
