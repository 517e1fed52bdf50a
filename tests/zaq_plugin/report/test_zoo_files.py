"""The table of exported files: what is told is there, what is not leaves no column."""

import re

from zaq_plugin.report.zoo_files import files_table


def heads(page: str) -> list[str]:
    return [re.sub("<[^>]*>", "", head) for head in re.findall(r"<th\b.*?</th>", page, re.DOTALL)]


def test_without_files_there_is_no_table() -> None:
    assert files_table([{"key": "net"}, {"key": "other", "files": []}]) == ""


def test_files_of_several_kinds_side_by_side() -> None:
    onnx = {"file": "model.onnx", "bytes": 54_000, "zipped_bytes": 50_000, "agreement": 96.9}
    pte = {
        **onnx,
        "file": "model.pte",
        "bytes": 88_000,
        "archive_bytes": 41_000,
        "float_bytes": 320_000,
        "float_zipped_bytes": 300_000,
        "stock_bytes": 89_000,
        "stock_zipped_bytes": 80_000,
        "ms": 0.25,
        "float_ms": 0.9,
        "stock_ms": 0.26,
    }
    page = files_table([{"key": "net", "files": [onnx, pte]}])
    titles = heads(page)
    sizes = ("kB", "kB zipped", "kB packed", "Float kB", "Stock int8 kB zipped")
    for text in (*sizes, "Latency (ms)"):
        assert any(text in head for head in titles), text
    assert not any("Top-1" in head for head in titles)
    assert "model.onnx" in page
    assert "model.pte" in page
    assert "0.26" in page
    assert "41.0" in page
    assert not any("Float kB packed" in head for head in titles)
