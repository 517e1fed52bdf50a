"""The page of a whole zoo: a table, a chart, and a page for every model, in one HTML file.

It is made of plain dictionaries, as a run writes them; a key that is missing leaves its place out.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zaq_plugin.report import columns as col
from zaq_plugin.report.markup import Figure, cards, document, esc, table
from zaq_timm.zoo.errors import DONE
from zaq_timm.zoo.figures import Dot, size_scatter
from zaq_timm.zoo.model_page import model_section


@dataclass(frozen=True)
class ModelEntry:
    """One model of the zoo.

    Attributes:
        row: its results: ``key``, ``status``, ``reason``, and figures if it is done.
        details: ``layers``, ``sensitivities``, ``frontier``, ``levels``.
        manifest: what happened, as `zaq_plugin.report.Manifest` writes it.
        pictures: synthetic images as PNG; empty for none.
    """

    row: Mapping[str, Any]
    details: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    pictures: bytes = b""


def render_zoo_page(
    entries: Sequence[ModelEntry], settings: Mapping[str, Any], title: str = "Model zoo, quantized"
) -> str:
    """The page as HTML text; nothing in it leads outside.

    Args:
        entries: the models, in the order of the table.
        settings: what all of them have in common.
        title: the page's title.
    """
    done = [e for e in entries if e.row["status"] == DONE]
    overview = _cards(entries, done) + _chart(done) + "<h2>Models</h2>" + _table(entries)
    overview += files_table([e.row for e in done]) + _notes(done)
    shown = {k: v for k, v in settings.items() if v not in ("", None, [], False)}
    items = "".join(f"<dt>{esc(k)}</dt><dd>{esc(_word(v))}</dd>" for k, v in shown.items())
    overview += f'<h2>Settings</h2><div class="facts"><div><dl class="kv">{items}</dl></div></div>'
    keys = [str(e.row["key"]) for e in entries]
    pages = "".join(
        model_section(
            e.row,
            e.details,
            e.manifest,
            e.pictures,
            keys[i - 1] if i else None,
            keys[i + 1] if i + 1 < len(keys) else None,
        )
        for i, e in enumerate(entries)
    )
    return document(
        title,
        _lead(entries, done),
        f'<section id="overview">{overview}</section>{pages}',
        nav='<a href="#overview">All models</a>',
        footer="Written by zaq-quantize. Everything on this page comes from the run's results.",
        style=(Path(__file__).parent / "zoo.css").read_text(encoding="utf-8"),
    )


def _lead(entries: Sequence[ModelEntry], done: Sequence[ModelEntry]) -> str:
    text = f"{len(done)} of {len(entries)} models quantized without data"
    widths = {(e.row["mac_bits"], e.row["stored_bits"], e.row.get("activation_bits")) for e in done}
    if len(widths) == 1:
        mac, stored, activations = widths.pop()
        text += (
            f", weights of {col.bits(mac)} MAC bits and {col.bits(stored)} stored bits, "
            f"{col.bits(activations)}-bit activations"
        )
    left = len(entries) - len(done)
    return text + (f"; {left} left out, each with its reason." if left else ".")


def _cards(entries: Sequence[ModelEntry], done: Sequence[ModelEntry]) -> str:
    told = [("Models done", f"{len(done)} of {len(entries)}", "the others are listed with reasons")]
    if len(done) == len(entries):
        told = [("Models done", f"{len(done)} of {len(entries)}", "none left out")]
    if done:
        small = sum(e.row["size_bytes"] for e in done)
        whole = sum(e.row["float_bytes"] for e in done)
        note = f"{whole / small:.1f} × smaller than float, levels and float rests counted"
        told.append(("Size together", col.size(small), note))
        label = _value(done)[1]
        values = [v for e in done if (v := _value([e])[2][0]) is not None]
        if values:
            median = f"{statistics.median(values):.2f} %"
            told.append((f"Median {label}", median, f"over {len(values)} models"))
        layers = sum(e.row["layers"] for e in done)
        graded = sum(e.row["quantized"] for e in done)
        told.append(("Layers quantized", f"{graded:,} of {layers:,}", "in the models done"))
    return cards(told)


def _value(done: Sequence[ModelEntry]) -> tuple[str, str, list[float | None]]:
    """What the chart shows of each model: accuracy if any has it, else agreement."""
    if any(e.row.get("top1") is not None for e in done):
        return "top-1 (%)", "top-1", [e.row.get("top1") for e in done]
    label = "agreement with the float model (%)"
    return label, "agreement", [e.row.get("agreement") for e in done]


def _chart(done: Sequence[ModelEntry]) -> str:
    what, _, values = _value(done)
    dots = [
        Dot(
            str(e.row["key"]),
            f"m-{e.row['key']}",
            float(e.row["size_bytes"]),
            float(value),
            e.row.get("float_top1"),
        )
        for e, value in zip(done, values, strict=True)
        if value is not None and e.row["size_bytes"] > 0
    ]
    if not dots:
        return ""
    rings = any(d.base is not None for d in dots)
    caption = (
        f"Each dot is a model: its {what}, over the size of its quantized weights. A dot leads to "
        "its model's page."
    ) + (" Rings: the float model on the same images." if rings else "")
    title = f"{what[0].upper()}{what[1:]} against size"
    drawn = Figure(title, size_scatter(dots, what), caption).to_html("all", "wide")
    return f'<div class="wide">{drawn}</div>'


def _table(entries: Sequence[ModelEntry]) -> str:
    rows = [e.row for e in entries]
    columns = _columns(rows)

    def cell(row: int, column: col.Column, text: str) -> str:
        if column.title == "Model":
            return f'<a href="#m-{esc(rows[row]["key"])}">{text}</a>'
        if column.title == "Status":
            kind = "state" if rows[row]["status"] == DONE else "state not"
            return f'<span class="{kind}">{text}</span>'
        return text

    return table(columns, cell=cell, caption="Models", kind="results zoo")


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[col.Column]:
    def texts(title: str, values: list[Any]) -> col.Column:
        cells = [col.EMPTY if v in (None, "") else str(v) for v in values]
        return col.Column(title, title, cells, list(values), numeric=False)

    def numbers(title: str, values: list[float | None], places: int) -> col.Column:
        return col.Column(title, title, [col.number(v, places) for v in values], list(values))

    measured = [r.get("measured", {}) for r in rows]
    sizes: list[int | None] = [r.get("size_bytes") for r in rows]
    pairs = [(r.get("mac_bits"), r.get("stored_bits")) for r in rows]
    widths = col.Column(
        "Weight bits, MAC / stored",
        "",
        [col.bit_pair(a, b) for a, b in pairs],
        [None if b is None else b + (a or 0) / 100 for a, b in pairs],
    )
    counts = [(r.get("quantized"), r.get("layers")) for r in rows]
    layers = col.Column(
        "Layers",
        "",
        [col.EMPTY if b is None else f"{a} of {b}" for a, b in counts],
        [b for _, b in counts],
    )
    ratios = [r["float_bytes"] / r["size_bytes"] if r.get("size_bytes") else None for r in rows]
    columns = [
        texts("Model", [r["key"] for r in rows]),
        texts("Status", [r["status"] for r in rows]),
        texts("Host", [r.get("host") for r in rows]),
        widths,
        numbers("Activation bits", [r.get("activation_bits") for r in rows], 0),
        layers,
        col.Column("Size (kB)", "", col.kilobytes(sizes), list(sizes)),
        numbers("× smaller", ratios, 1),
    ]
    if any(r.get("top1") is not None for r in rows):
        columns.append(numbers("Float top-1 (%)", [r.get("float_top1") for r in rows], 2))
        columns.append(numbers("Top-1 (%)", [r.get("top1") for r in rows], 2))
        columns.append(numbers("Agreement (%)", [r.get("eval_agreement") for r in rows], 2))
    columns += [
        numbers("Agreement, synthetic (%)", [r.get("agreement") for r in rows], 1),
        col.Column(
            "Divergence (nats)",
            "",
            [col.EMPTY if r.get("divergence") is None else f"{r['divergence']:.2g}" for r in rows],
            [r.get("divergence") for r in rows],
        ),
        numbers("Time (s)", [t.get("seconds") for t in measured], 0),
    ]
    if any(r["status"] != DONE for r in rows):
        columns.append(texts("Why not", [r.get("reason") or "" for r in rows]))
    return columns


def _notes(done: Sequence[ModelEntry]) -> str:
    lines = [
        "MAC bits: width of the multiplier. Stored bits: width of one code on disk. Size counts "
        "codes, levels and what stays float.",
        "Agreement: share of images on which the quantized model names the float model's top "
        "class. Divergence: mean Kullback-Leibler divergence from the float model. Synthetic "
        "images are held out: they set no range and train nothing.",
    ]
    drawn = [e for e in done if e.row.get("weights_from") == "random"]
    if drawn:
        many = "All" if len(drawn) == len(done) else f"{len(drawn)}"
        lines.append(
            f"{many} of these models have random weights: their agreement says nothing about "
            "accuracy, only that the way through quantization works."
        )
    return '<div class="notes">' + "".join(f"<p>{esc(x)}</p>" for x in lines) + "</div>"


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


_ANSWERS = (
    ("Agreement, synthetic (%)", "agreement", 1),
    ("Agreement (%)", "eval_agreement", 2),
    ("Top-1 (%)", "top1", 2),
)
_PEERS = (("", ""), ("float_", "Float "), ("stock_", "Stock int8 "))


def files_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table, one line a file; nothing if no row tells of files.

    Args:
        rows: Results with ``key`` and ``files``: ``file``, ``bytes``, ``zipped_bytes``,
            ``archive_bytes`` (of ``zaq-quantize pack``), ``ms``, what the same tool's float file
            and stock int8 have (``float_bytes``, ``stock_ms``, ...), and how the file agrees with
            the float model; what is missing is left out.
    """
    files = [{"model": row["key"], **file} for row in rows for file in row.get("files", ())]
    if not files:
        return ""
    columns = [_file_texts("Model", "model", files), _file_texts("File", "file", files)]
    for prefix, word in _PEERS:
        for name, kind in (("kB", ""), ("kB zipped", "zipped_"), ("kB packed", "archive_")):
            sizes: list[int | None] = [file.get(f"{prefix}{kind}bytes") for file in files]
            if any(sizes):
                title = f"{word}{name}".strip()
                columns.append(col.Column(title, title, col.kilobytes(sizes), list(sizes)))
        columns += _file_numbers(
            f"{word}latency (ms)".strip().capitalize(), f"{prefix}ms", 2, files
        )
    for title, key, places in _ANSWERS:
        columns += _file_numbers(title, key, places, files)
    return "<h2>Files</h2>" + table(columns, caption="Exported files", kind="results")


def _file_texts(title: str, key: str, files: Sequence[Mapping[str, Any]]) -> col.Column:
    values = [str(file[key]) for file in files]
    return col.Column(title, title, values, list(values), numeric=False)


def _file_numbers(
    title: str, key: str, places: int, files: Sequence[Mapping[str, Any]]
) -> list[col.Column]:
    values: list[float | None] = [file.get(key) for file in files]
    if all(value is None for value in values):
        return []
    return [col.Column(title, title, [col.number(v, places) for v in values], list(values))]
