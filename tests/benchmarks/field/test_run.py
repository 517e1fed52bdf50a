"""The field benchmark: jobs, rows that survive, tables that say what the rows hold."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.field.jobs import grid, job, missing, parse, rows_with, sources, taken_over
from benchmarks.field.run import main
from benchmarks.field.tables import failed, page, seconds_text, summary, write_tables
from benchmarks.peers.driver import pythons
from benchmarks.rows import append_row, read_rows

LEVELS = ("pwlq", "uniform")


def row(score: float, **changes: Any) -> dict[str, Any]:
    settings = {"model": "cifar10", "method": "rq", "bits": "4/8", **changes}
    data = settings.get("images", "synthetic")
    stored = int(settings["bits"].split("/")[0])
    levels = settings.get("levels", "pwlq" if settings["method"] == "pwlq" else "uniform")
    return {
        "job": job(**settings),
        "metric": "top-1",
        "score": score,
        "agreement": score,
        "fp32": 90.0,
        "mac_bits": stored - (levels == "pwlq"),
        "stored_bits": stored,
        "stored_bytes": 1000,
        "levels": levels,
        "data": data,
        "seconds": 2.0,
        "notes": [],
        "protocol": {"residual_adds": "float"},
    }


def test_methods_are_parsed_and_nonsense_is_refused() -> None:
    assert parse("pwlq") == ("pwlq", "auto", None)
    assert parse("rq+bias-correction@uniform:real") == ("rq+bias-correction", "uniform", "real")
    assert parse("nncf/best") == ("nncf/best", "auto", None)
    with pytest.raises(ValueError, match="no strategy 'pwl'. Did you mean 'pwlq'"):
        parse("pwl")
    with pytest.raises(ValueError, match="levels of 'rq@round' must be uniform or pwlq"):
        parse("rq@round")
    with pytest.raises(ValueError, match="known are plain, best"):
        parse("nncf/fast")
    with pytest.raises(ValueError, match="images of 'rq:test' must be synthetic or real"):
        parse("rq:test")


def test_real_images_are_only_offered_where_there_are_some() -> None:
    assert sources("pwlq", "cifar10") == ["synthetic", "real"]
    assert sources("pwlq", "coco") == ["synthetic"]
    assert sources("nncf/best", "cifar10") == ["real"]
    assert sources("nncf/best", "imagenet") == ["synthetic"]


def test_the_grid_goes_seed_by_seed_and_has_no_job_twice() -> None:
    jobs = list(grid(["cifar10"], ["rq", "pwlq:real"], [0, 1], ["4/8", "4/4"]))
    assert [j["seed"] for j in jobs] == [0] * 6 + [1] * 6
    assert len({json.dumps(j) for j in jobs}) == 12


def test_a_row_that_is_there_is_not_run_again(tmp_path: Path) -> None:
    path, jobs = tmp_path / "rows.jsonl", list(grid(["coco"], ["rq"], [0], ["4/8", "6/8"]))
    path.write_text('{"job": {"half')  # a run was killed while it wrote
    append_row(path, {"job": jobs[0], "score": 1.0})
    assert read_rows(path) == [{"job": jobs[0], "score": 1.0}]
    assert missing(jobs, read_rows(path)) == jobs[1:]
    append_row(path, {"job": jobs[1], "error": "x"})
    assert missing(jobs, read_rows(path)) == []
    assert missing(jobs, read_rows(path), retry=True) == jobs[1:]


def test_the_best_of_each_column_stands_out_and_seeds_have_a_spread() -> None:
    rows = [row(80.0), row(82.0, seed=1), row(85.0, method="pwlq"), row(70.0, bits="4/4")]
    table = summary(rows, ["W4A8", "W4A4"], "stored_bits")
    assert table.rows == [
        ["rq", "81.00 ± 1.41", "**70.00**", "2"],
        ["pwlq", "**85.00**", "", "2"],
    ]
    by_mac = summary(rows, ["W4A8", "W3A8"], "mac_bits")
    assert by_mac.rows[1] == ["pwlq", "", "**85.00**", "2"]


def test_the_page_parts_data_free_from_calibrated_and_tells_failures() -> None:
    failed = {"job": job("cifar10", "mct/best", "4/8", images="real"), "error": "no such thing"}
    text = page([row(80.0), row(88.0, images="real"), failed]).markdown()
    free, calibrated = text.split("### Calibrated on real images, equal stored bits")
    assert "**80.00**" in free
    assert "88.00" not in free
    assert "**88.00**" in calibrated
    assert "| MCT, best | CIFAR-10 ResNet-20 | 4/8 | no such thing |" in text
    assert "| 4 / 4 | 8 / 8 |" in text  # MAC and stored bits of every row


def test_what_ran_with_less_effort_is_no_failure() -> None:
    stopped = {"job": job("cifar10", "mct/best", "4/8"), "error": "stopped after 480 s"}
    other = {"job": job("cifar10", "mct/best", "3/3"), "error": "stopped after 480 s"}
    shorter = row(80.0, method="mct/best", effort=0.5)
    assert failed([stopped, other, shorter]) == [other]
    text = page([stopped, other, shorter]).markdown()
    assert "| MCT, best | CIFAR-10 ResNet-20 | 3/3 | stopped after 480 s |" in text


def test_agreement_has_a_table_of_its_own_where_it_is_known() -> None:
    rows = [
        {**row(88.0), "agreement": 91.0},
        {**row(87.0, method="pwlq+gptq", levels="pwlq"), "agreement": 97.5},
        {**row(89.0, method="omse"), "agreement": None},
    ]
    text = page(rows).markdown()
    table = text.split("agreement with the float model, equal stored bits (%)")[1].split("###")[0]
    assert "| pwlq+gptq |  |  | **97.50** |" in table
    assert "omse" not in table
    assert "agreement with" not in page([rows[2]]).markdown()


def test_less_effort_is_told_and_gives_way_to_more(tmp_path: Path) -> None:
    half, whole = row(80.0, effort=0.5), row(81.0)
    assert rows_with([whole, half]) == [whole]
    assert rows_with([half]) == [half]
    assert "0.5 of the steps of distillation and training" in page([half]).markdown()
    assert "of the steps" not in page([whole]).markdown()


def test_a_mean_is_of_rows_with_equal_effort() -> None:
    some = [row(80.0, effort=0.25), row(90.0, effort=0.25, seed=1), row(86.0, effort=1.0)]
    other = row(70.0, effort=0.25, bits="6/8")
    assert sorted(r["score"] for r in rows_with([*some, other])) == [70.0, 86.0]


def test_jobs_that_ask_for_the_same_in_other_words_count_once() -> None:
    one = row(33.0, method="pwlq", levels="uniform", bits="2/4")
    other = {**one, "job": {**one["job"], "levels": "auto"}}
    assert len(rows_with([one, other])) == 1
    assert len(rows_with([one, row(33.0, method="pwlq", levels="uniform", bits="3/3")])) == 2


@pytest.mark.parametrize("machine", [{"device": "some GPU"}, {"device": "cpu", "counted": False}])
def test_seconds_of_a_gpu_or_another_cpu_do_not_count(machine: dict[str, object]) -> None:
    there = {**row(80.0, seed=1), "seconds": 9.0, "machine": machine}
    assert seconds_text([row(80.0), there]) == "2"
    assert seconds_text([there]) == ""
    shown = summary([row(80.0), there], ["W4A8"], "stored_bits").rows
    assert shown == [["rq", "**80.00 ± 0.00**", "2"]]


def test_compositions_of_ours_are_named_by_their_levels() -> None:
    rows = [row(1.0, method=m, levels=v) for m in ("pwlq+gptq", "gptq") for v in LEVELS]
    names = {r[0] for r in summary(rows, ["W4A8"], "stored_bits").rows}
    assert names == {"pwlq+gptq", "pwlq+gptq, uniform levels", "gptq", "gptq, PWLQ levels"}


def test_rows_of_the_zero_shot_benchmark_are_taken_over(tmp_path: Path) -> None:
    old = {
        "job": {
            "task": "cifar10", "method": "default", "bits": "3/3", "weights": "pwlq",
            "seed": 2, "input_bits": 8, "set": {},
        },
        "top1": 85.0, "agreement": 90.0, "fp32": 87.7, "seconds": 9.0,
    }  # fmt: skip
    path = tmp_path / "old.jsonl"
    append_row(path, old)
    append_row(path, {**old, "job": {**old["job"], "set": {"steps": 1}}})
    append_row(path, {**old, "job": {**old["job"], "method": "before"}})
    alone = {**old["job"], "task": "imagenet", "bits": "4/8", "set": {"steps": 0}}
    append_row(path, {**old, "job": alone})
    append_row(path, {**old, "job": {**alone, "depthwise": "int8"}})
    first, other = taken_over(path)
    assert other["job"]["model"] == "imagenet"
    assert other["notes"][1:] == ["steps = 0"]
    assert (first["job"]["method"], first["job"]["seed"]) == ("zaq", 2)
    assert (first["mac_bits"], first["stored_bits"], first["score"]) == (2, 3, 85.0)


def test_a_peer_python_must_be_named() -> None:
    assert pythons(["mct=/opt/python"]) == {"mct": "/opt/python"}
    with pytest.raises(ValueError, match="--peer-python expects NAME=PATH, got 'mct'"):
        pythons(["mct"])


def run(data: Path, out: Path, *more: str) -> list[dict[str, Any]]:
    arguments = ["--data", str(data), "--model", "cifar10", "--bits", "4/8", "--limit", "20"]
    arguments += ["--out", str(out), "--also", str(out.parent / "none"), *more]
    assert main([*arguments, "--cache", str(out.parent / "cache")]) == 0
    return read_rows(out)


@pytest.mark.slow
def test_a_run_measures_writes_and_resumes(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "field.jsonl"
    rows = run(data, out, "--method", "rq", "pwlq:real")
    assert [(r["job"]["method"], r["data"]) for r in rows] == [
        ("rq", "synthetic"),
        ("rq", "real"),
        ("pwlq", "real"),
    ]
    assert all(r["layers"] == 20 and not r["float_layers"] for r in rows)
    assert (rows[2]["mac_bits"], rows[2]["stored_bits"]) == (3, 4)
    assert rows[1]["protocol"]["calibration"] == "512 `train` images"
    assert "pwlq" in out.with_suffix(".md").read_text()
    assert out.with_suffix(".html").read_text().startswith("<!doctype html>")
    capsys.readouterr()
    assert run(data, out, "--method", "rq", "pwlq:real") == rows
    assert capsys.readouterr().out == ""


def test_a_peer_that_cannot_run_leaves_its_reason(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "field.jsonl"
    missing_python = f"mct={tmp_path / 'python'}"
    (entry,) = run(data, out, "--method", "mct/plain", "--peer-python", missing_python)
    assert entry["error"].startswith(f"PeerError: cannot start {tmp_path / 'python'}")
    assert "What could not be run" in out.with_suffix(".md").read_text()


@pytest.mark.slow
def test_a_peer_runs_in_a_process_of_its_own(data: Path, tmp_path: Path) -> None:
    (entry,) = run(data, tmp_path / "field.jsonl", "--method", "torchao/plain")
    assert entry["stored_bits"] == entry["mac_bits"] == 4
    assert entry["layers"] == 20
    assert entry["float_layers"] == []
    assert 0 <= entry["agreement"] <= 100


def test_nothing_is_written_without_rows(tmp_path: Path) -> None:
    write_tables([], tmp_path / "field.jsonl")
    assert list(tmp_path.iterdir()) == []
