"""The benchmark of methods in hosts: a row once, the table by the rows."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.hosts import methods
from benchmarks.hosts.methods import HOSTS, KEY, main, markdown
from benchmarks.rows import read_rows

RESULTS = Path(methods.__file__).parents[1] / "results" / "methods_in_hosts.jsonl"


def test_the_committed_table_is_that_of_the_committed_rows() -> None:
    rows = read_rows(RESULTS)
    assert markdown(rows) == RESULTS.with_suffix(".md").read_text(encoding="utf-8")
    keys = [tuple(row[k] for k in KEY) for row in rows]
    assert len(set(keys)) == len(keys)


def test_rows_are_measured_once_and_errors_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def measure(jobs: list[dict[str, Any]], subject: object, cache: Path) -> Any:
        for job in jobs:
            asked.append(job["host"])
            if job["host"] == "nncf":
                raise ValueError("nncf cannot")
            agreement = 84.9 if job["host"] == "fx" else 85.5
            yield {**job, "score": 80.0, "float": 90.0, "agreement": agreement, "seconds": 3.0}

    monkeypatch.setattr(methods, "measure", measure)
    monkeypatch.setattr(methods, "load_subject", lambda *_: SimpleNamespace(published=90))
    out = tmp_path / "rows.jsonl"
    command = ["--data", str(tmp_path), "--method", "pwlq", "--bits", "4/8", "--out", str(out)]
    command += ["--cache", str(tmp_path / "images")]
    assert main(command) == 0
    assert asked == ["simulated", "onnx", "fx", "pt2e", "nncf"]  # by students
    assert [json.loads(line)["host"] for line in out.read_text().splitlines()] == asked
    text = out.with_suffix(".md").read_text()
    assert "| `pwlq` | 1 | 4/8 | 80.00 / 85.50, 3 s | " in text
    assert text.count("80.00 / 84.90 !, 3 s") == 1, "FX is 0.6 points behind"
    assert "- cifar10, pwlq, nncf, 4/8: nncf cannot" in text
    assert main(command) == 0
    assert len(asked) == len(HOSTS)
