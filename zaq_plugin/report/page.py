"""One self-contained HTML page about a run: no address in it leads outside, it prints well."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zaq_plugin.files import write_whole
from zaq_plugin.report import columns as col
from zaq_plugin.report._json import plain
from zaq_plugin.report.headline import Headline, featured_row, headlines
from zaq_plugin.report.manifest import Manifest
from zaq_plugin.report.markup import Figure, cards, document, esc, pairs, table
from zaq_plugin.report.protocol import footnotes, label
from zaq_plugin.report.records import Audit, ResultRow


def render_page(
    manifest: Manifest,
    figures: Sequence[Figure] = (),
    title: str = "Quantization report",
    *,
    lead: str = "",
    headline: Sequence[Headline] | None = None,
    row: int | None = None,
    tables: Mapping[str, Sequence[col.Column]] | None = None,
) -> str:
    """The page as HTML text.

    Args:
        manifest: what to tell.
        figures: pictures, in order; those of one section stand together.
        title: the page's title.
        lead: a sentence under the title; by default the audit's summary.
        headline: the numbers at the top; by default `headlines`.
        row: which of the results is marked and told at the top; by default `featured_row`.
        tables: further tables by the name of their section, behind the results.

    Raises:
        ValueError: `row` is no row of the results.
    """
    if row is not None and not 0 <= row < len(manifest.results):
        raise ValueError(
            f"row {row} does not exist; the manifest has results 0 to {len(manifest.results) - 1}."
        )
    shown = list(headlines(manifest, row) if headline is None else headline)
    place, why = featured_row(manifest) if row is None else (row, "the one that this is about.")
    sections: list[tuple[str, str]] = []
    if manifest.results:
        sections.append(("Results", _results(manifest.results, place, why)))
    for name, columns in (tables or {}).items():
        sections.append((name, table(columns, caption=name)))
    for name in dict.fromkeys(f.section for f in figures):
        bodies = [f.to_html(i) for i, f in enumerate(figures) if f.section == name]
        sections.append((name, f'<div class="figures">{"".join(bodies)}</div>'))
    if len(manifest.layers) or manifest.audits:
        sections.append(("Layers", _audits(manifest)))
    if manifest.stages:
        sections.append(("Stages", _stages(manifest)))
    sections.append(("Protocol and versions", _facts(manifest)))
    if not lead and len(manifest.layers):
        lead = col.audit_summary(manifest.layers)
    what = f"{manifest.model} · " if manifest.model else ""
    nav = "".join(f'<a href="#s{i}">{esc(name)}</a>' for i, (name, _) in enumerate(sections))
    body = "".join(
        f'<section id="s{i}"><h2>{esc(name)}</h2>{inner}</section>'
        for i, (name, inner) in enumerate(sections)
    )
    version = manifest.versions.get("zaq-plugin", "")
    return document(
        title,
        what + lead,
        cards((h.label, h.value, h.note) for h in shown) + body,
        nav=nav,
        footer=f"Written by zaq-plugin {esc(version)}. "
        "Everything on this page comes from the run's manifest.",
    )


def render_table_page(columns: Sequence[col.Column], title: str, lead: str) -> str:
    """A page with one sortable table on it, as HTML text.

    Args:
        columns: the table; the first holds the rows' heads.
        title: of the page.
        lead: a sentence under it.
    """
    body = f"<section><h2>Layers</h2>{table(columns, caption=title)}</section>"
    return document(title, lead, body)


def write_page(
    path: str | os.PathLike[str],
    manifest: Manifest,
    figures: Sequence[Figure] = (),
    title: str = "Quantization report",
    *,
    lead: str = "",
    headline: Sequence[Headline] | None = None,
    row: int | None = None,
    tables: Mapping[str, Sequence[col.Column]] | None = None,
) -> Path:
    """Writes `render_page`'s HTML to `path`, atomically; arguments as there."""
    text = render_page(
        manifest, figures, title, lead=lead, headline=headline, row=row, tables=tables
    )
    return write_whole(path, text)


def _results(rows: Sequence[ResultRow], place: int | None, why: str) -> str:
    def row_class(row: int) -> str:
        names = ["base" if rows[row].is_float else ("pick" if row == place else "")]
        if row and _widths(rows[row]) != _widths(rows[row - 1]):
            names.append("group")
        return " ".join(filter(None, names))

    marks = footnotes(rows)[1]

    def cell(row: int, column: col.Column, text: str) -> str:
        if column.title == "Method" and marks[row]:
            return f"{esc(rows[row].method)}&#8239;<sup>{marks[row]}</sup>"
        return text

    lines = col.notes(rows)
    if place is not None:
        lines.insert(0, f"Marked row, also told above: {why}")
    body = table(
        col.result_columns(rows), row_class=row_class, cell=cell, caption="Results", kind="results"
    )
    return body + '<div class="notes">' + "".join(f"<p>{esc(x)}</p>" for x in lines) + "</div>"


def _widths(row: ResultRow) -> tuple[float, float]:
    return (row.weight_mac_bits, row.activation_mac_bits)


def _audits(manifest: Manifest) -> str:
    parts = []
    if len(manifest.layers):
        summary = esc(col.audit_summary(manifest.layers))
        parts.append(f'<p class="lead above">{summary}</p>{audit_html(manifest.layers, "Layers")}')
    for name, audit in manifest.audits.items():
        parts.append(
            f"<details><summary>{esc(name)} <span>— {esc(col.audit_summary(audit))}</span>"
            f"</summary>{audit_html(audit, name)}</details>"
        )
    return "".join(parts)


def audit_html(audit: Audit, caption: str) -> str:
    """An audit as a sortable table, with what all its layers share below.

    Args:
        audit: the layers.
        caption: for screen readers.
    """
    if not len(audit):
        return "<p>No layer has a weight to quantize.</p>"
    records = audit.records
    finite = [r.sqnr_db for r in records if r.sqnr_db is not None and 0 < r.sqnr_db < 1e3]
    top = max(finite, default=1.0)

    def cell(row: int, column: col.Column, text: str) -> str:
        record = records[row]
        if column.title == "Layer":
            return f"<code>{text}</code>"
        if column.title.startswith("Format") and not record.quantized:
            return f'<span class="why">{text}</span>'
        if column.title.startswith("SQNR") and record.sqnr_db is not None:
            width = 56 * min(1.0, max(0.0, record.sqnr_db / top))
            return f'<span class="bar" style="width:{width:.0f}px"></span>{text}'
        return text

    shared = _shared(audit)
    columns = [c for c in col.audit_columns(records) if c.title not in shared]
    body = table(
        columns,
        row_class=lambda row: "" if records[row].quantized else "left",
        cell=cell,
        caption=caption,
    )
    if shared:
        summary = "; ".join(f"{title.lower()}: {value}" for title, value in shared.items())
        body += f'<div class="notes"><p>All quantized layers: {esc(summary)}.</p></div>'
    return body


def _shared(audit: Audit) -> dict[str, str]:
    """Columns that say the same in every quantized layer: told once instead."""
    shared = {}
    if len(audit.quantized) > 2:
        for title, name in (("Input", "activation"), ("Kernel", "kernel")):
            values = {vars(r)[name] for r in audit.quantized}
            if len(values) == 1 and None not in values:
                shared[title] = str(values.pop())
    return shared


def _stages(manifest: Manifest) -> str:
    stages = manifest.stages
    names = [s.name for s in stages]
    facts = ["; ".join(f"{label(k)}: {_brief(v)}" for k, v in s.facts.items()) for s in stages]
    columns = [
        col.Column("Stage", "Stage", names, list(names), numeric=False),
        col.Column(
            "Time",
            "Time",
            [col.seconds_text(s.seconds) for s in stages],
            [s.seconds for s in stages],
        ),
        col.Column("What happened", "", facts, list(facts), numeric=False),
    ]

    def cell(row: int, column: col.Column, text: str) -> str:
        if column.title == "What happened" and stages[row].status != "done":
            return f'<span class="fail">{esc(stages[row].status)}</span> {text}'
        return text

    return table(columns, cell=cell, caption="Stages")


def _facts(manifest: Manifest) -> str:
    blocks = []
    if manifest.protocol:
        protocol = {label(k): _brief(v) for k, v in manifest.protocol.items()}
        blocks.append(("Protocol", pairs(protocol)))
    if manifest.seeds:
        blocks.append(("Seeds", pairs(manifest.seeds)))
    if manifest.specs:
        blocks.append(("Formats", pairs({k: _brief(v) for k, v in manifest.specs.items()}, True)))
    if manifest.versions:
        blocks.append(("Versions", pairs(manifest.versions)))
    inner = "".join(f"<div><h3>{esc(name)}</h3>{body}</div>" for name, body in blocks)
    out = f'<div class="facts">{inner}</div>' if inner else "<p>Nothing was recorded.</p>"
    if manifest.ranges:
        ranges = {k: _brief(v) for k, v in manifest.ranges.items()}
        out += (
            f"<details><summary>Activation ranges <span>— {len(ranges)} recorded</span></summary>"
            f'<div class="scroll" style="padding:12px 16px">{pairs(ranges, True)}</div></details>'
        )
    return out


def _brief(value: Any) -> str:
    value = plain(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{k}={_brief(v)}" for k, v in value.items())
    if isinstance(value, list):
        head = ", ".join(_brief(v) for v in value[:8])
        return f"[{head}, … {len(value)} values]" if len(value) > 8 else f"[{head}]"
    return "–" if value is None else str(value)
