"""A folder of results as a table, a CSV and a page."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zaq_plugin.report.columns import Column, bit_pair, bits, number
from zaq_plugin.report.tables import rich_table
from zaq_timm.zoo.details import DETAILS, PICTURES
from zaq_timm.zoo.errors import DONE
from zaq_timm.zoo.job import MANIFEST
from zaq_timm.zoo.light import write_whole
from zaq_timm.zoo.page import ModelEntry, render_zoo_page
from zaq_timm.zoo.results import MODELS, Results

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

PAGE, TABLE = "report.html", "report.csv"

CSV_COLUMNS = (
    "key",
    "model",
    "status",
    "reason",
    "host",
    "weights_from",
    "input",
    "mac_bits",
    "stored_bits",
    "activation_bits",
    "layers",
    "quantized",
    "parameters",
    "float_bytes",
    "size_bytes",
    "sqnr_db",
    "divergence",
    "agreement",
    "eval_images",
    "float_top1",
    "top1",
    "eval_agreement",
    "batch",
    "calibration",
    "seconds",
    "peak_bytes",
    "notes",
)


def write_report(results: Results) -> list[Path]:
    """Writes the page and the CSV into the results' folder; returns their paths."""
    entries = [_entry(results, row) for row in results.rows.values()]
    page = render_zoo_page(entries, results.settings)
    return [
        write_whole(results.folder / PAGE, page),
        write_whole(results.folder / TABLE, csv_text(list(results.rows.values()))),
    ]


def _entry(results: Results, row: dict[str, Any]) -> ModelEntry:
    key = row["key"]
    picture = results.folder / MODELS / key / PICTURES
    return ModelEntry(
        row,
        results.detail(key, DETAILS) or {},
        results.detail(key, MANIFEST) or {},
        picture.read_bytes() if picture.is_file() else b"",
    )


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as CSV, one line a model, with a head."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in rows:
        flat = {**row, **row.get("measured", {}), "notes": "; ".join(row.get("notes", []))}
        writer.writerow(["" if flat.get(n) is None else flat[n] for n in CSV_COLUMNS])
    return text.getvalue()


def terminal_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows as a rich table."""
    eval_rows = any(row.get("top1") is not None for row in rows)
    heads = ["Model", "Status", "Host", "Weights\nMAC/stored", "Act.\nbits", "Layers", "Size\nkB"]
    heads += ["of\nfloat", "Float\ntop-1 %", "Top-1\n%"] if eval_rows else ["of\nfloat"]
    heads += ["Agree\n%", "Diverg.\nnats", "Time\ns"]
    cells = zip(*(_cells(row, eval_rows) for row in rows), strict=True)
    columns = [
        Column(head, head, list(column), [], numeric=index > 2)
        for index, (head, column) in enumerate(zip(heads, cells, strict=False))
    ]
    made = _images(rows, "agreement_images")
    where = (
        f"agreement on {_images(rows, 'eval_images')}, divergence on {made}"
        if eval_rows
        else f"agreement and divergence on {made}"
    )
    caption = (
        "MAC bits: width of the multiplier; stored bits: width of one code on disk. Size counts "
        f"codes, levels and what stays float. From the float model: {where}, that nothing was "
        "tuned on."
    )
    return rich_table(columns, None, caption)


def _images(rows: Sequence[dict[str, Any]], name: str) -> str:
    """How many images shares are of, in words; one of so many is the least that they can differ."""
    counts = sorted({row[name] for row in rows if row.get(name)})
    kind = "images" if name == "eval_images" else "synthetic images"
    if not counts:
        return kind
    if len(counts) > 1:
        return f"{counts[0]} to {counts[-1]} {kind}"
    return f"{counts[0]} {kind} (one is {100 / counts[0]:.2g} points)"


def _cells(row: dict[str, Any], eval_rows: bool) -> list[str]:
    seconds = number(row.get("measured", {}).get("seconds"), 0)
    if row["status"] != DONE:
        return [row["key"], row["status"], *["–"] * (8 if eval_rows else 6), "–", seconds]
    size = row["size_bytes"]
    cells = [
        row["key"],
        row["status"],
        row["host"],
        bit_pair(row["mac_bits"], row["stored_bits"]).replace(" ", ""),
        bits(row["activation_bits"]),
        f"{row['quantized']}/{row['layers']}",
        number(size / 1e3, 0),
        f"1/{row['float_bytes'] / size:.1f}" if size else "–",
    ]
    if eval_rows:
        cells += [number(row.get("float_top1"), 2), number(row.get("top1"), 2)]
    agreement = row.get("eval_agreement") if eval_rows else row["agreement"]
    return [*cells, number(agreement, 1), f"{row['divergence']:.2g}", seconds]
