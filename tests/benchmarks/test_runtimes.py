"""Where files run: rows are measured once, tables say what rows say, the page keeps its text."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.rows import read_rows
from benchmarks.runtimes.run import OUT, PAGE, main
from benchmarks.runtimes.tables import BEGIN, END, markdown, put_between_markers

pytest.importorskip("zaq_onnx", reason="the files are ONNX")


def row(runtime: str, network: str, form: str, **changes: Any) -> dict[str, Any]:
    return {
        "network": network,
        "form": form,
        "runtime": runtime,
        "version": "1.0",
        "sha256": "0",
        "bytes": 12345,
        "vnni": False,
        "state": "right",
        "message": "",
        "steps": 0.25,
        "integer_layers": 3,
        "float_layers": 1,
        "load_seconds": 0.002,
        "milliseconds": 1.0,
        "float_milliseconds": 4.0,
    } | changes


def test_cells_say_where_what_fails() -> None:
    rows = [
        row("one", "digits", "int8"),
        row("one", "vit_tiny", "int8", state="does not load", message="no | such type"),
        row("one", "digits", "packed4", milliseconds=1.5),
        row("two", "digits", "int8", state="wrong", steps=128.0),
    ]
    text = markdown(rows)
    assert (
        "| `one` | 1.0 | not measured | yes (digits); no, does not load (ViT) | yes (digits) |"
        in text
    )
    assert "| `two` | 1.0 | not measured | no, wrong (digits) | not measured |" in text
    assert "| `one` | 3 of 4 | 0.25 | - | - |" in text
    assert "0.25 (1 ms)" in text
    assert "| `one` | 0.25 (1 ms) | - | 1.50 |" in text
    assert "- `one`, ViT int8: no   such type" in text
    assert "- `two`, digits int8: off by 128.0 steps" in text
    assert "without VNNI" in text
    newer = [
        row(name, network, "int8") for name in ("one", "two") for network in ("digits", "vit_tiny")
    ]
    assert "| `two` | 1.0 | not measured | **yes** |" in markdown([*rows, *newer])


def test_only_what_is_between_the_marks_is_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        put_between_markers(page, "new\n")
        assert page.read_text() == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="no line <!-- runtimes: begin -->"):
        put_between_markers(page, "new\n")


def test_the_page_is_what_the_rows_say() -> None:
    text = markdown(read_rows(OUT))
    assert f"{BEGIN}\n{text}{END}" in PAGE.read_text(encoding="utf-8")
    assert OUT.with_suffix(".md").read_text(encoding="utf-8") == f"# Where files run\n\n{text}"


@pytest.mark.slow
def test_a_file_is_measured_once(tmp_path: Path) -> None:
    page, out = tmp_path / "page.md", tmp_path / "rows.jsonl"
    page.write_text(f"{BEGIN}\n{END}\n")
    asked = ["--files", str(tmp_path / "files"), "--networks", "digits", "--seconds", "0.05"]
    asked += ["--runtimes", "onnx.reference", "--out", str(out), "--page", str(page)]
    assert main(asked) == 0
    rows = read_rows(out)
    assert [one["form"] for one in rows] == ["float", "int8", "packed4", "packed5"]
    assert all(one["state"] == "right" and one["float_layers"] == 10 for one in rows)
    assert rows[3]["bytes"] < rows[1]["bytes"] < rows[0]["bytes"]
    assert "| `onnx.reference` |" in page.read_text()
    assert main(asked) == 0
    assert read_rows(out) == rows
