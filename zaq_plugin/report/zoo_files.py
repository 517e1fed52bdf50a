"""The table of the files that a run exported, measured on the files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zaq_plugin.report import columns as col
from zaq_plugin.report._html import table

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
    columns = [_texts("Model", "model", files), _texts("File", "file", files)]
    for prefix, word in _PEERS:
        for name, kind in (("kB", ""), ("kB zipped", "zipped_"), ("kB packed", "archive_")):
            sizes: list[int | None] = [file.get(f"{prefix}{kind}bytes") for file in files]
            if any(sizes):
                title = f"{word}{name}".strip()
                columns.append(col.Column(title, title, col.kilobytes(sizes), list(sizes)))
        columns += _numbers(f"{word}latency (ms)".strip().capitalize(), f"{prefix}ms", 2, files)
    for title, key, places in _ANSWERS:
        columns += _numbers(title, key, places, files)
    return "<h2>Files</h2>" + table(columns, caption="Exported files", kind="results")


def _texts(title: str, key: str, files: Sequence[Mapping[str, Any]]) -> col.Column:
    values = [str(file[key]) for file in files]
    return col.Column(title, title, values, list(values), numeric=False)


def _numbers(
    title: str, key: str, places: int, files: Sequence[Mapping[str, Any]]
) -> list[col.Column]:
    values: list[float | None] = [file.get(key) for file in files]
    if all(value is None for value in values):
        return []
    return [col.Column(title, title, [col.number(v, places) for v in values], list(values))]
