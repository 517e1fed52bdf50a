"""The numbers at the top of the page, and which row of the results they tell."""

from __future__ import annotations

from dataclasses import dataclass

from zaq_plugin.report import columns as col
from zaq_plugin.report.manifest import Manifest
from zaq_plugin.report.records import ResultRow

_WITHIN = 1.0


@dataclass(frozen=True)
class Headline:
    """One number at the page's top: what it is, the number, and a word on it."""

    label: str
    value: str
    note: str = ""


def featured_row(manifest: Manifest) -> tuple[int | None, str]:
    """Which row the headline tells, and why, in words.

    The first row with the widths of ``manifest.layers``, the model that the run hands back. Without
    such a row the smallest within one point of FP32, else the most accurate; rows of equal size go
    by accuracy. This picks what to show, never a model. None if no quantized row has a top-1.
    """
    rows, layers = manifest.results, manifest.layers
    graded = [i for i, r in enumerate(rows) if not r.is_float and r.top1 is not None]
    if not graded:
        return None, ""
    for i in graded:
        widths = (rows[i].weight_mac_bits, rows[i].weight_stored_bits)
        if layers.quantized and widths == (layers.mac_bits, layers.stored_bits):
            return i, "the model that this report hands over, its layers below."
    near = []
    for i in graded:
        baseline = col.fp32_top1(rows[i], rows)
        if baseline is not None and baseline - _top1(rows[i]) <= _WITHIN:
            near.append(i)
    if near:
        best = min(near, key=lambda i: (_weight(rows[i]), -_top1(rows[i])))
        return best, f"the smallest within {_WITHIN:g} point of FP32."
    return max(graded, key=lambda i: _top1(rows[i])), "the most accurate."


def _top1(row: ResultRow) -> float:
    return -1.0 if row.top1 is None else row.top1


def _weight(row: ResultRow) -> tuple[float, float]:
    size = float("inf") if row.size_bytes is None else float(row.size_bytes)
    return (size, row.weight_stored_bits)


def headlines(manifest: Manifest, row: int | None = None) -> list[Headline]:
    """The numbers at the top; `row` as in `render_page`."""
    rows = manifest.results
    out: list[Headline] = []
    baseline = next((r for r in rows if r.is_float and r.top1 is not None), None)
    place = featured_row(manifest)[0] if row is None else row
    if baseline is not None:
        size = f"{col.size(baseline.size_bytes)} of weights" if baseline.size_bytes else ""
        out.append(Headline(f"{baseline.method} top-1", f"{baseline.top1:.2f} %", size))
    if place is not None:
        entry = rows[place]
        widths = f"W{col.bits(entry.weight_mac_bits)}A{col.bits(entry.activation_mac_bits)}"
        out.append(
            Headline(
                f"{entry.method}, {widths}",
                f"{col.number(entry.top1, 2)} %",
                "top-1 at "
                f"{col.bit_pair(entry.weight_mac_bits, entry.weight_stored_bits)} weight bits "
                "(MAC / stored)",
            )
        )
        if entry.size_bytes and baseline is not None and baseline.size_bytes:
            ratio = baseline.size_bytes / entry.size_bytes
            change = f"{ratio:.1f} × smaller" if ratio >= 1 else f"{1 / ratio:.1f} × larger"
            note = f"{change}, levels and scales counted"
            out.append(Headline("Size of its weights", col.size(entry.size_bytes), note))
        if entry.agreement is not None:
            note = "of images get the same top class"
            out.append(Headline("Agreement with FP32", f"{entry.agreement:.2f} %", note))
    if len(manifest.layers):
        done, left = len(manifest.layers.quantized), len(manifest.layers.skipped)
        note = f"{left} left alone, each with its reason" if left else "none left out"
        out.append(Headline("Layers quantized", f"{done} of {done + left}", note))
    return out
