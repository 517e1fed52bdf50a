"""The page of the zero-shot benchmark says what its rows hold."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.zero_shot.jobs import DEFAULTS, jobs_of, rows_of, weight_spec
from benchmarks.zero_shot.tables import ablation, layer_weights, results


def row(top1: float, **job: Any) -> dict[str, Any]:
    return {
        "job": {**DEFAULTS, **job},
        "top1": top1,
        "agreement": top1 + 1,
        "fp32": 90.0,
        "seconds": 60.0,
    }


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_line_for_each_format_and_a_column_for_each_method() -> None:
    rows = [
        row(50.0, bits="3/4", method="before", weights="pwlq"),
        row(80.0, bits="3/4", weights="pwlq"),
        row(82.0, bits="3/4", weights="pwlq", seed=1),
        row(70.0, bits="3/4", weights="pwlq", set={"steps": 1}),  # another recipe: not in here
        row(60.0, bits="3/4", weights="uniform-mse", input_bits=0),
        {"job": {**DEFAULTS, "bits": "2/2"}, "error": "ValueError: no"},
    ]
    lines = results(rows)
    assert lines[0] == "## CIFAR-10 ResNet-20, float 90.00 %"
    head, first, second = cells(lines[2]), cells(lines[4]), cells(lines[5])
    pwlq, uniform = dict(zip(head, first, strict=True)), dict(zip(head, second, strict=True))
    assert pwlq["MAC / stored bits"] == "2 / 3"
    assert pwlq["before"] == "50.00"
    assert pwlq["`default`"] == "81.00 (80.00 to 82.00)"
    assert pwlq["points below float"] == "9.00 (8.00 to 10.00)"
    assert (pwlq["input"], pwlq["seeds of `default`"]) == ("8", "2")
    assert uniform["MAC / stored bits"] == "3 / 3"
    assert uniform["input"] == "4"
    assert uniform["before"] == "–"


def test_a_task_that_has_one_recipe_shows_it() -> None:
    lines = results([row(70.0, task="imagenet", bits="5/8", weights="pwlq", set={"steps": 0})])
    shown = dict(zip(cells(lines[2]), cells(lines[4]), strict=True))
    assert shown["`default`"] == "70.00"


def test_an_ablation_names_what_changed_and_what_did_not() -> None:
    common = {"steps": 9}
    rows = [
        {**row(0.0, set={"steps": 5, "reconstruct": False}), "train_agreement": 70.0},
        {**row(0.0, set=common), "train_agreement": 91.0},
        {
            **row(0.0, set={**common, "mixup": 0.0}),
            "train_agreement": 90.5,
            "train_divergence": 0.25,
        },
    ]
    lines = ablation(rows)
    assert lines[0] == "## What each setting does"
    assert lines[2] == (
        "4/4 (stored weight / activation bits), uniform, min-max, seed 0, steps = 9."
    )
    assert [cells(line)[0] for line in lines[6:8]] == ["nothing", "mixup = 0.0"]
    assert [cells(line)[2] for line in lines[6:8]] == ["–", "0.2500"]
    assert [cells(line)[3] for line in lines[6:8]] == ["91.00", "90.50"]
    assert lines[9].endswith("seed 0, steps = 5, reconstruct = false.")
    assert [cells(line)[3] for line in lines[13:14]] == ["70.00"]
    assert ablation([row(50.0)]) == []


def test_lambda_of_the_paper_s_runs_only() -> None:
    rows = [
        {**row(1.0, method="paper"), "layer_weights": {"a": 0.25, "b": 0.75}},
        {**row(1.0), "layer_weights": {"a": 0.5, "b": 0.5}},
    ]
    lines = layer_weights(rows)
    assert lines[2:] == [
        "| bits | seed | a | b |",
        "|---|---|---:|---:|",
        "| 4/4 | 0 | 0.250 | 0.750 |",
        "",
    ]


def test_unknown_names_in_a_job_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_text(json.dumps({"bit": "3/3"}))
    with pytest.raises(ValueError, match=r"unknown names in a job: \['bit'\]"):
        jobs_of(argparse.Namespace(jobs=str(path)))
    path.write_text(json.dumps({"set": {"stepz": 3}}))
    with pytest.raises(ValueError, match="Did you mean 'steps'"):
        jobs_of(argparse.Namespace(jobs=str(path)))
    assert rows_of(tmp_path / "none.jsonl") == []


def test_formats_are_named_by_what_they_store() -> None:
    assert weight_spec("pwlq", 4).stored_bits == 4
    assert weight_spec("pwlq", 4).mac_bits == 3
    assert weight_spec("uniform-mse", 4).stored_bits == 4
    with pytest.raises(ValueError, match="unknown weights 'ternary'"):
        weight_spec("ternary", 2)
