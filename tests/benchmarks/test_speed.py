"""The page of the speed benchmark says what its lines hold."""

from pathlib import Path

from benchmarks.rows import read_rows
from benchmarks.speed import run

FOLDER = Path(__file__).parents[2] / "benchmarks"


def line(build, cpu, **more):
    return {"row": "gptq", "build": build, "seed": 0, "cpu": cpu, "peak_mb": 100.0, **more}


def test_a_row_shows_medians_spread_and_their_ratio():
    lines = [line("before", s, agreement=90.0) for s in (8.0, 10.0, 30.0)]
    lines += [line("now", s, ratio=1.5) for s in (2.0, 4.0)]
    row = run.page(lines).splitlines()[-1]
    assert "| 10 (8 to 30) | 3 (2 to 4) [1.50] | **0.30** | 90.00, 90.00, 90.00 | – |" in row
    assert row.endswith("| 100 | 100 | 3, 2 |")


def test_a_row_that_one_build_lacks_is_left_out():
    assert "`gptq`" not in run.page([line("now", 1.0)])


def test_the_page_is_that_of_the_lines():
    results = FOLDER / "results"
    lines = read_rows(results / "speed.jsonl")
    notes = (FOLDER / "speed" / "notes.md").read_text()
    assert (results / "speed.md").read_text() == run.page(lines) + notes
