"""What inspection and comparison print: lines of text, and columns for a page."""

from __future__ import annotations

import math
from collections.abc import Sequence

from zaq_plugin.report.columns import EMPTY, Column
from zaq_timm.looking.differences import LayerDifference
from zaq_timm.looking.predict import STORED_BITS, Sketch, spec_at

SHOWN_REASONS = 5


def sketch_lines(sketch: Sketch) -> list[str]:
    """A sketch in words: layers, what stays float and why, hosts, sizes."""
    rows = [
        (
            layer.name,
            layer.kind,
            "x".join(map(str, layer.shape)) or EMPTY,
            f"{layer.numel:,}",
            *(f"{layer.bytes[bits]:,}" for bits in STORED_BITS),
            "" if layer.quantized and not layer.reason else layer.reason or "",
        )
        for layer in sketch.layers
    ]
    heads = ("layer", "kind", "weight", "weights", *(f"{b} bits" for b in STORED_BITS), "")
    inputs = f", images {'x'.join(map(str, sketch.inputs))}" if sketch.inputs else ""
    page = [f"{sketch.name}: weights: {sketch.weights}{inputs}", ""]
    page += _aligned([heads, *rows], right=(3, 4, 5, 6))
    page += [
        "",
        "bytes of a layer are its codes, clips and breakpoints at so many stored bits",
        "",
    ]
    whole = sketch.float_bytes
    for bits in STORED_BITS:
        spec, size = spec_at(bits), sketch.size(bits)
        name = spec.label.partition(" (")[0]
        page.append(f"  {name:<32} {size / 1000:>10,.1f} kB   {whole / size:4.1f} x smaller")
    page.append(f"  {'float32':<32} {whole / 1000:>10,.1f} kB")
    if sketch.seconds:
        page += ["", "seconds of `zaq-quantize run --strategy ...` here, predicted"]
        page += [f"  {name:<12} {value:>10,.1f}" for name, value in sketch.seconds.items()]
    page += ["", "hosts, asked at 4 MAC bits and 8-bit activations"] if sketch.hosts else []
    for name, verdict in sketch.hosts.items():
        if not verdict["takes"]:
            page.append(f"  {name:<6} no: {verdict['reason']}")
            continue
        page.append(
            f"  {name:<6} yes, {verdict['quantized']} of {verdict['layers']} layers quantized"
        )
        reasons = list(verdict["float"].items())
        page += [f"         float: {n}: {why}" for n, why in reasons[:SHOWN_REASONS]]
        if len(reasons) > SHOWN_REASONS:
            page.append(f"         and {len(reasons) - SHOWN_REASONS} more (--json tells all)")
    page += ["", *(f"Note: {note}" for note in sketch.notes)] if sketch.notes else []
    return [line.rstrip() for line in page]


def difference_columns(
    differences: Sequence[LayerDifference], first: str, second: str
) -> list[Column]:
    """The comparison as columns; SQNRs of both where records were compared."""
    names = [d.layer for d in differences]
    columns = [
        Column("Layer", "Layer", names, list(names), numeric=False),
        _numbers("Weights", [d.numel for d in differences], 0),
    ]
    if any(d.before is not None or d.after is not None for d in differences):
        columns += [
            _numbers(f"SQNR in {first}, dB", [d.before for d in differences], 1),
            _numbers(f"SQNR in {second}, dB", [d.after for d in differences], 1),
        ]
    else:
        title = f"SQNR of {second} against {first}, dB"
        columns.append(_numbers(title, [d.sqnr_db for d in differences], 1))
    notes = [d.note for d in differences]
    if any(notes):
        columns.append(Column("Note", "Note", notes, list(notes), numeric=False))
    return columns


def _numbers(title: str, values: Sequence[float | None], places: int) -> Column:
    cells = [EMPTY if v is None else _number(v, places) for v in values]
    return Column(title, title, cells, list(values))


def _number(value: float, places: int) -> str:
    if math.isinf(value):
        return "exact" if value > 0 else "lost"
    return f"{value:,.{places}f}"


def column_lines(columns: Sequence[Column]) -> list[str]:
    """Columns as aligned text."""
    rows = [tuple(c.title for c in columns), *zip(*(c.cells for c in columns), strict=True)]
    return _aligned(rows, tuple(i for i, c in enumerate(columns) if c.numeric))


def _aligned(rows: Sequence[tuple[str, ...]], right: tuple[int, ...]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
