"""Results on disk: whole lines, one a model, of one kind of settings, written by one run."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from zoo_fake_work import FakePlan

from zaq_timm.zoo.errors import RunError
from zaq_timm.zoo.results import Results
from zaq_timm.zoo.runner import run
from zaq_timm.zoo.worker import Limits

PLAN = FakePlan(("a", "b", "c"))


def go(out: Path, plan: FakePlan = PLAN, **more: Any) -> Results:
    return run(plan, out, limits=Limits(), quiet=True, **more)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_every_model_has_one_line_and_a_folder(tmp_path: Path) -> None:
    results = go(tmp_path / "zoo")
    assert [row["key"] for row in lines(tmp_path / "zoo")] == ["a", "b", "c"]
    assert list(results.rows.values()) == lines(tmp_path / "zoo")
    for key in "abc":
        place = tmp_path / "zoo" / "models" / key
        assert json.loads((place / "row.json").read_text()) == results.rows[key]
        assert {p.name for p in place.iterdir()} == {"row.json", "log.txt", "steps.txt"}


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    go(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("steps.txt")}
    keys: list[str] = []
    go(tmp_path, FakePlan(("a", "b", "c", "d")), on_row=lambda row: keys.append(row["key"]))
    assert keys == ["d"]
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert [row["key"] for row in lines(tmp_path)] == ["a", "b", "c", "d"]


def test_other_settings_are_refused_with_the_difference(tmp_path: Path) -> None:
    go(tmp_path)
    before = (tmp_path / "results.jsonl").read_bytes()
    with pytest.raises(RunError) as caught:
        go(tmp_path, FakePlan(("a",), settings="other"))
    text = str(caught.value)
    assert 'settings: "same" there, "other" now' in text
    assert "--out" in text
    assert "--restart" in text
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_restart_begins_anew(tmp_path: Path) -> None:
    go(tmp_path)
    go(tmp_path, FakePlan(("b",), settings="other"), restart=True)
    assert [row["key"] for row in lines(tmp_path)] == ["b"]
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["b"]


def test_a_failed_model_is_done_again_when_asked(tmp_path: Path) -> None:
    go(tmp_path, FakePlan(("a",), "fail"))
    assert go(tmp_path, FakePlan(("a",))).rows["a"]["status"] == "failed"
    assert go(tmp_path, FakePlan(("a",)), retry="failed").rows["a"]["status"] == "done"
    assert len(lines(tmp_path)) == 1


def test_a_killed_model_is_done_again_by_itself(tmp_path: Path) -> None:
    go(tmp_path, FakePlan(("a",)))
    row = {**lines(tmp_path)[0], "status": "killed", "reason": "killed from outside"}
    (tmp_path / "results.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "models" / "a" / "row.json").write_text(json.dumps(row))
    assert go(tmp_path, FakePlan(("a",)), retry="none").rows["a"]["status"] == "killed"
    assert go(tmp_path, FakePlan(("a",))).rows["a"]["status"] == "done"


def test_a_model_that_was_done_when_the_run_died_is_taken_over(tmp_path: Path) -> None:
    go(tmp_path)
    rows = lines(tmp_path)
    (tmp_path / "results.jsonl").write_text(json.dumps(rows[0]) + "\n")
    left = tmp_path / "models" / ".tmp-x-1"
    left.mkdir()
    keys: list[str] = []
    go(tmp_path, on_row=lambda row: keys.append(row["key"]))
    assert keys == []
    assert sorted(lines(tmp_path), key=lambda r: r["key"]) == rows
    assert not left.exists()


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("{not json", "line 2 of .*results.jsonl is no result"),
        ('{"key": "b"}', "line 2 of .*results.jsonl is no result"),
        ('{"key": "a", "status": "done"}', "line 2 of .*results.jsonl repeats 'a'"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, text: str) -> None:
    go(tmp_path)
    whole = (tmp_path / "results.jsonl").read_text().splitlines()
    (tmp_path / "results.jsonl").write_text("\n".join([whole[0], line, whole[2]]))
    with pytest.raises(RunError, match=text):
        go(tmp_path)
    with pytest.raises(RunError, match="delete that line"):
        Results.read(tmp_path)


def test_a_folder_without_results_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no results of zaq-quantize run"):
        Results.read(tmp_path)


def test_damaged_settings_are_told(tmp_path: Path) -> None:
    go(tmp_path)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(RunError, match=r"settings\.json is damaged"):
        go(tmp_path)


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    with (
        Results.open(tmp_path, PLAN.shared, False),
        pytest.raises(RunError, match="another run is writing to"),
    ):
        go(tmp_path)
    go(tmp_path)


@pytest.mark.skipif(
    hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write to any folder"
)
def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(RunError, match="cannot write to .*; give another --out"):
            go(tmp_path / "zoo")
    finally:
        tmp_path.chmod(stat.S_IRWXU)


def test_a_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "zoo").write_text("mine")
    with pytest.raises(RunError, match="cannot write to .*zoo: .*; give another --out"):
        go(tmp_path / "zoo")
    assert (tmp_path / "zoo").read_text() == "mine"


def test_a_full_disk_stops_the_run_and_keeps_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(tmp_path, FakePlan(("a",)))
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith("results.jsonl"):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(RunError, match="No space left on device. What is done is kept"):
            go(tmp_path)
    assert [row["key"] for row in lines(tmp_path)] == ["a"]
    assert len(go(tmp_path).rows) == 3
    assert not list(tmp_path.rglob("*.tmp"))
