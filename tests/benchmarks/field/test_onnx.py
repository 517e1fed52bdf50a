"""From a method to a file: the row holds what the runtime answered."""

from pathlib import Path

import pytest

from benchmarks.field.onnx import main
from benchmarks.rows import read_rows

pytest.importorskip("zaq_onnx", reason="the files are ONNX")


@pytest.mark.slow
def test_a_row_has_the_figures_of_student_and_file(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "onnx.jsonl"
    asked = ["--data", str(data), "--model", "cifar10", "--method", "pwlq", "--effort", "0.02"]
    asked += ["--cache", str(tmp_path / "cache"), "--out", str(out)]
    assert main(asked) == 0
    (row,) = read_rows(out)
    assert row["problems"] == []
    assert (row["integer_layers"], row["float_layers"]) == (20, 0)
    assert row["bytes"] < row["int8_bytes"]
    assert row["file"]["agreement"] >= 90
    assert row["simulated"]["agreement"] >= 90
    said = out.with_suffix(".md").read_text()
    assert f"{row['file']['score']:.2f} / {row['file']['agreement']:.2f}" in said
    assert "20 of 20" in said
    assert main(asked) == 0
    assert len(read_rows(out)) == 1, "what is there is not run again"
