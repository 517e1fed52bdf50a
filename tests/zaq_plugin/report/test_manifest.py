"""The manifest: round trip, stages, and a save that cannot leave half a file."""

import importlib.metadata
import json
import os
import platform
import time

import pytest
import torch

from zaq_plugin.pwlq import PWLQSpec
from zaq_plugin.report import Audit, LayerRecord, Manifest, ResultRow, Stage, collect_versions


def example() -> Manifest:
    manifest = Manifest.start("net", seeds={"run": 3})
    manifest.layers.add(
        LayerRecord(
            "a", "Conv2d", 9, True, spec="x", mac_bits=4, stored_bits=5, sqnr_db=float("inf")
        )
    )
    manifest.audits["other"] = Audit([LayerRecord("a", "Conv2d", 9, False, "left alone")])
    manifest.results.append(ResultRow("FP32", 32, 32, 32, 32, top1=99.0))
    manifest.ranges["a"] = [-1.0, 2.0]
    manifest.protocol["first_last"] = 8
    with manifest.stage("calibrate", batches=2) as facts:
        facts["lows"] = torch.tensor([1.0, 2.0])
    return manifest


def test_save_and_load_give_the_same_manifest(tmp_path):
    manifest = example()
    assert manifest.save(tmp_path / "m.json") == tmp_path / "m.json"
    assert Manifest.load(tmp_path / "m.json") == manifest


def test_specs_are_written_with_their_kind():
    manifest = Manifest(specs={"weights": PWLQSpec(bits=3)})
    read = Manifest.from_json(manifest.to_json()).specs["weights"]
    assert PWLQSpec.from_json(json.dumps(read)) == PWLQSpec(bits=3)


def test_versions_are_those_of_the_installed_packages():
    versions = collect_versions()
    assert versions["python"] == platform.python_version()
    assert versions["torch"] == importlib.metadata.version("torch")
    assert set(versions) >= {"numpy", "safetensors", "rich"}


def test_equal_runs_give_equal_files_but_for_the_timings():
    first, second = example(), example()
    for manifest in (first, second):
        manifest.timings.clear()
        for stage in manifest.stages:
            stage.seconds = 0.0
    assert first.to_json() == second.to_json()


def test_stage_times_records_and_keeps_order():
    manifest = Manifest()
    with manifest.stage("one", n=1) as facts:
        assert manifest.stages[-1].status == "running"
        assert not manifest.finished("one")
        time.sleep(0.02)
        facts["m"] = (1, 2)
    with manifest.stage("two"):
        pass
    with manifest.stage("one"):
        pass
    assert [s.name for s in manifest.stages] == ["one", "two", "one"]
    assert manifest.stages[0].facts == {"n": 1, "m": [1, 2]}
    assert manifest.stages[0].seconds >= 0.02
    assert manifest.timings["one"] == pytest.approx(
        manifest.stages[0].seconds + manifest.stages[2].seconds
    )
    assert manifest.finished("one")
    assert not manifest.finished("three")


def test_a_failed_stage_is_recorded_and_the_error_goes_on():
    manifest = Manifest()

    def run() -> None:
        with manifest.stage("bad", n=1) as facts:
            facts["thing"] = object()
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        run()
    stage = manifest.stages[0]
    assert stage.status == "failed"
    assert stage.facts == {"n": 1, "error": "ZeroDivisionError: division by zero"}
    assert not manifest.finished("bad")
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_a_fact_that_json_cannot_hold_is_named():
    manifest = Manifest()
    with (
        pytest.raises(TypeError, match=r"stage 'x'\.thing is a object"),
        manifest.stage("x") as facts,
    ):
        facts["thing"] = object()
    assert manifest.stages[0].status == "failed"


def test_a_value_that_json_cannot_hold_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.json"
    manifest = example()
    manifest.save(path)
    old = path.read_text()
    manifest.ranges["b"] = object()
    with pytest.raises(TypeError, match=r"manifest\.ranges\.b is a object"):
        manifest.save(path)
    assert path.read_text() == old


def test_a_crash_while_saving_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.json"
    manifest = example()
    manifest.save(path)

    def crash(*_args):
        raise OSError("power is gone")

    monkeypatch.setattr(os, "replace", crash)
    later = example()
    later.model = "later"
    with pytest.raises(OSError, match="power is gone"):
        later.save(path)
    monkeypatch.undo()
    assert Manifest.load(path) == manifest
    assert [p.name for p in tmp_path.iterdir()] == ["m.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "m.json: Manifest is not valid JSON"),
        ('{"format": 1, "layerz": {}}', "m.json: Manifest has unknown key.* 'layerz'"),
        ('{"format": 7}', "m.json: Manifest has format 7; this version reads 1"),
        ("{}", "m.json: Manifest has format None"),
        (
            '{"format": 1, "stages": [{"name": "a", "took": 1}]}',
            "Stage 'a' has unknown key.* 'took'",
        ),
    ],
)
def test_load_names_the_file_and_the_fault(tmp_path, text, message):
    path = tmp_path / "m.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        Manifest.load(path)


def test_an_empty_manifest_is_a_manifest():
    assert Manifest.from_json(Manifest().to_json()) == Manifest()
    assert Stage("a") == Stage("a", 0.0, "done", {})
