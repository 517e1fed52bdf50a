"""The page of the speed benchmark says what its lines hold."""

import importlib.util
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def run():
    spec = importlib.util.spec_from_file_location("speed_run", FOLDER / "speed" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def line(build, cpu, **more):
    return {"row": "gptq", "build": build, "seed": 0, "cpu": cpu, "peak_mb": 100.0, **more}


def test_a_row_shows_medians_spread_and_their_ratio(run):
    lines = [line("before", s, agreement=90.0) for s in (8.0, 10.0, 30.0)]
    lines += [line("now", s, ratio=1.5) for s in (2.0, 4.0)]
    row = run.table(lines).splitlines()[-1]
    assert "| 10 (8 to 30) | 3 (2 to 4) [1.50] | **0.30** | 90.00, 90.00, 90.00 | – |" in row
    assert row.endswith("| 100 | 100 | 3, 2 |")


def test_a_row_that_one_build_lacks_is_left_out(run):
    assert "`gptq`" not in run.table([line("now", 1.0)])


def test_the_page_is_that_of_the_lines(run):
    results = FOLDER / "results"
    lines = [json.loads(text) for text in (results / "speed.jsonl").read_text().splitlines()]
    notes = (FOLDER / "speed" / "notes.md").read_text()
    assert (results / "speed.md").read_text() == run.table(lines) + notes
