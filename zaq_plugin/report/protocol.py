"""What a row of a results table must say beside its number, and how it is said in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zaq_plugin.report.records import ResultRow

PROTOCOL_KEYS: dict[str, str] = {
    "fp32_top1": "FP32 accuracy of the same weights (%)",
    "first_last": "bits of first and last layer",
    "residual_adds": "residual adds",
    "symmetry": "symmetry",
    "granularity": "granularity",
    "calibration": "calibration data",
    "evaluation": "evaluation images",
    "seed": "seed",
}
"""Key in ``ResultRow.protocol`` to the words printed for it. Further keys are printed as given."""

_MUST = ("first_last", "residual_adds", "symmetry", "granularity", "calibration")


def protocol_text(protocol: Mapping[str, Any]) -> str:
    """A protocol in words: ``first and last layer: 8 bits; calibration data: ...``."""
    order = [k for k in PROTOCOL_KEYS if k in protocol]
    order += [k for k in protocol if k not in PROTOCOL_KEYS]
    return "; ".join(f"{label(k)}: {_words(protocol[k])}" for k in order)


def label(key: str) -> str:
    """The words for a protocol's key."""
    return PROTOCOL_KEYS.get(key, key.replace("_", " "))


def footnotes(rows: Sequence[ResultRow]) -> tuple[str, list[str], dict[str, str]]:
    """Splits the rows' protocols into what all share and what sets rows apart.

    Returns:
        The text shared by all quantized rows; for every row its mark (``""``, ``"a"``, ``"b"``,
        ...); and for every mark its text. A row that keeps silent about bits of the first and last
        layer, residual adds, symmetry, granularity or calibration is told to be silent.
    """
    graded = [row for row in rows if not row.is_float]
    shared: dict[str, Any] = {}
    if graded:
        first = graded[0].protocol
        shared = {k: v for k, v in first.items() if all(_has(row, k, v) for row in graded)}
        silent_all = [k for k in _MUST if all(k not in row.protocol for row in graded)]
    else:
        silent_all = []
    parts = [protocol_text(shared)] if shared else []
    if silent_all:
        parts.append("not stated: " + ", ".join(label(k) for k in silent_all))
    marks: list[str] = []
    texts: dict[str, str] = {}
    for row in rows:
        own = {k: v for k, v in row.protocol.items() if not (k in shared and _has(row, k, v))}
        said = [protocol_text(own)] if own else []
        if not row.is_float:
            silent = [k for k in _MUST if k not in row.protocol and k not in silent_all]
            if silent:
                said.append("not stated: " + ", ".join(label(k) for k in silent))
        text = "; ".join(said)
        if text and text not in texts.values():
            texts[_mark(len(texts))] = text
        marks.append(next((m for m, t in texts.items() if t == text), "") if text else "")
    return "; ".join(parts), marks, texts


def _has(row: ResultRow, key: str, value: Any) -> bool:
    return key in row.protocol and row.protocol[key] == value


def _mark(index: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return letters[index] if index < 26 else _mark(index // 26 - 1) + letters[index % 26]


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_words(v) for v in value)
    return str(value)
