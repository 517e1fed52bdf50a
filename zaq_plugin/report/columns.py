"""What stands in a table of results or layers: its columns, its cells, the lines under it.

Wherever a width is printed, MAC bits and stored bits stand side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zaq_plugin.report.protocol import footnotes
from zaq_plugin.report.records import Audit, LayerRecord, ResultRow

EMPTY = "–"
"""What stands in a cell that has no value."""


@dataclass(frozen=True)
class Column:
    """A column ready to print.

    Attributes:
        title: Its head, unit included.
        head: The same for a narrow terminal, several short lines.
        cells: One text a row.
        keys: What to sort each row by: the number behind the text, or the text.
        numeric: Whether it is set flush right.
    """

    title: str
    head: str
    cells: list[str]
    keys: list[float | str | None]
    numeric: bool = True


def bits(value: float | None) -> str:
    """A width: whole numbers without a point, means with two places."""
    if value is None:
        return EMPTY
    return f"{value:.0f}" if value == int(value) else f"{value:.2f}"


def bit_pair(mac: float | None, stored: float | None) -> str:
    """MAC bits and stored bits, always both: ``4 / 5``."""
    return EMPTY if mac is None and stored is None else f"{bits(mac)} / {bits(stored)}"


def number(value: float | None, places: int) -> str:
    """A number with fixed places; ``∞`` and ``NaN`` where it is neither finite."""
    if value is None:
        return EMPTY
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:,.{places}f}".replace("-", "−")


def percent(value: float | None, spread: float | None = None) -> str:
    """A percentage, with its standard deviation in points if there is one: ``87.6 ± 0.3``."""
    text = number(value, 2)
    return text if value is None or spread is None else f"{text} ± {number(spread, 2)}"


def seconds_text(value: float | None) -> str:
    """A time a person can read: ``0.8 s``, ``42 s``, ``3 min 20 s``."""
    if value is None:
        return EMPTY
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60:02d} s"


def size(value: int | None) -> str:
    """A size in words: kB (1,000 bytes), or MB from 10 MB."""
    if value is None:
        return EMPTY
    return f"{value / 1e6:,.1f} MB" if value >= 10_000_000 else f"{value / 1e3:,.1f} kB"


def kilobytes(values: Sequence[int | None]) -> list[str]:
    """A column of sizes in kB (1,000 bytes), all with the same places."""
    places = 1 if all(v is None or v < 1_000_000 for v in values) else 0
    return [EMPTY if v is None else number(v / 1e3, places) for v in values]


def fp32_top1(row: ResultRow, rows: Sequence[ResultRow]) -> float | None:
    """FP32 accuracy of the row's weights.

    What its protocol says under ``fp32_top1``, else that of the table's only float row.
    """
    accuracy = row.protocol.get("fp32_top1")
    if accuracy is not None:
        return float(accuracy)
    baselines = [r.top1 for r in rows if r.is_float and r.top1 is not None]
    return baselines[0] if len(baselines) == 1 else None


def result_columns(rows: Sequence[ResultRow]) -> list[Column]:
    """The columns of a results table; a column that no row fills is left out, widths never are."""
    marks = footnotes(rows)[1]
    names = [f"{r.method} [{m}]" if m else r.method for r, m in zip(rows, marks, strict=True)]
    columns = [
        Column("Method", "Method", names, [r.method for r in rows], numeric=False),
        Column(
            "Weight bits, MAC / stored",
            "Weight\nMAC /\nstored",
            [bit_pair(r.weight_mac_bits, r.weight_stored_bits) for r in rows],
            [r.weight_stored_bits + r.weight_mac_bits / 100 for r in rows],
        ),
        Column(
            "Activation bits, MAC / stored",
            "Activ.\nMAC /\nstored",
            [bit_pair(r.activation_mac_bits, r.activation_stored_bits) for r in rows],
            [r.activation_stored_bits + r.activation_mac_bits / 100 for r in rows],
        ),
    ]
    drops = [_drop(r, rows) for r in rows]
    sizes = kilobytes([r.size_bytes for r in rows])
    times = _seconds([r.seconds for r in rows])
    seeds: list[float | None] = [r.seeds for r in rows] if _several_seeds(rows) else [None]
    optional: list[tuple[str, str, list[float | None], Callable[[int], str]]] = [
        ("Size (kB)", "Size\nkB", [r.size_bytes for r in rows], lambda i: sizes[i]),
        ("SQNR (dB)", "SQNR\ndB", [r.sqnr_db for r in rows], lambda i: number(rows[i].sqnr_db, 1)),
        (
            "Top-1 (%)",
            "Top-1\n%",
            [r.top1 for r in rows],
            lambda i: percent(rows[i].top1, rows[i].spread),
        ),
        ("vs FP32 (points)", "vs\nFP32", drops, lambda i: _signed(drops[i])),
        (
            "Agreement (%)",
            "Agree\n%",
            [r.agreement for r in rows],
            lambda i: number(rows[i].agreement, 2),
        ),
        ("Seeds", "Seeds", seeds, lambda i: EMPTY if _bare(rows[i]) else str(rows[i].seeds)),
        ("Time (s)", "Time\ns", [r.seconds for r in rows], lambda i: times[i]),
    ]
    for title, head, keys, text in optional:
        if any(k is not None for k in keys):
            cells = [text(i) for i in range(len(rows))]
            columns.append(Column(title, head, cells, list(keys)))
    return columns


def _seconds(values: Sequence[float | None]) -> list[str]:
    places = 1 if all(v is None or v < 100 for v in values) else 0
    return [number(v, places) for v in values]


def _several_seeds(rows: Sequence[ResultRow]) -> bool:
    return any(r.seeds > 1 for r in rows)


def _bare(row: ResultRow) -> bool:
    return row.is_float and row.seeds == 1


def _drop(row: ResultRow, rows: Sequence[ResultRow]) -> float | None:
    baseline = fp32_top1(row, rows)
    if row.is_float or row.top1 is None or baseline is None:
        return None
    return row.top1 - baseline


def _signed(value: float | None) -> str:
    if value is None:
        return EMPTY
    text = number(value, 2)
    return text if text.startswith("−") or round(value, 2) == 0 else f"+{text}"


def notes(rows: Sequence[ResultRow]) -> list[str]:
    """The lines that belong under a results table: what bits mean, protocol, seeds and spread."""
    shared, _, texts = footnotes(rows)
    lines = [
        "MAC bits: width of the multiplier. Stored bits: width of one code on disk. "
        "Size counts codes, clips and breakpoints (or scales), and what stays float."
    ]
    if any(r.spread is not None for r in rows):
        lines.append("±: standard deviation over the seeds, in points.")
    if not _several_seeds(rows) and any(not r.is_float for r in rows):
        lines.append("One seed a row: no spread is known.")
    if shared:
        lines.append(f"Protocol: {shared}.")
    lines += [f"[{mark}] {text}." for mark, text in texts.items()]
    return lines


def audit_columns(records: Sequence[LayerRecord]) -> list[Column]:
    """The columns of a per-layer table; optional columns that no record fills are left out."""
    names = [r.name for r in records]
    kinds = [r.kind for r in records]
    columns = [
        Column("Layer", "Layer", names, list(names), numeric=False),
        Column("Kind", "Kind", kinds, list(kinds), numeric=False),
        Column("Weights", "Weights", [f"{r.numel:,}" for r in records], [r.numel for r in records]),
        Column(
            "Bits, MAC / stored",
            "MAC /\nstored",
            [bit_pair(r.mac_bits, r.stored_bits) for r in records],
            [r.stored_bits for r in records],
        ),
    ]
    sizes = kilobytes([r.stored_bytes for r in records])
    optional: list[tuple[str, list[float | str | None], list[str], bool]] = [
        (
            "Entropy (bits)",
            [r.entropy_bits for r in records],
            [number(r.entropy_bits, 2) for r in records],
            True,
        ),
        ("Size (kB)", [r.stored_bytes for r in records], sizes, True),
        (
            "SQNR (dB)",
            [r.sqnr_db for r in records],
            [number(r.sqnr_db, 1) for r in records],
            True,
        ),
        (
            "Input",
            [r.activation for r in records],
            [r.activation or EMPTY for r in records],
            False,
        ),
        ("Kernel", [r.kernel for r in records], [r.kernel or EMPTY for r in records], False),
    ]
    for title, keys, cells, numeric in optional:
        if any(k is not None for k in keys):
            columns.append(Column(title, title.replace(" (", "\n("), cells, keys, numeric))
    texts = [format_or_reason(r) for r in records]
    title = "Format, or why not quantized" if any(not r.quantized for r in records) else "Format"
    return [*columns, Column(title, title, texts, list(texts), numeric=False)]


def format_or_reason(record: LayerRecord) -> str:
    """What a layer became, with its remark; or that it was not quantized, with the reason."""
    if not record.quantized:
        return f"not quantized: {record.reason}"
    return f"{record.spec}; {record.reason}" if record.reason else str(record.spec)


def audit_summary(audit: Audit) -> str:
    """One sentence: how many layers were quantized, at which widths, and how large they are."""
    done, left = len(audit.quantized), len(audit.skipped)
    if not done:
        return f"Nothing was quantized: {left} layers were left alone."
    weights = sum(r.numel for r in audit.quantized)
    whole = sum(r.numel for r in audit.records)
    share = 100.0 * weights / whole if whole else 100.0
    text = (
        f"{done} of {done + left} layers quantized ({share:.1f} % of the weights), mean "
        f"{bits(audit.mac_bits)} MAC bits and {bits(audit.stored_bits)} stored bits a weight; "
        f"all weights take {size(audit.stored_bytes)}."
    )
    return text + (f" {left} left alone, each with its reason." if left else "")
