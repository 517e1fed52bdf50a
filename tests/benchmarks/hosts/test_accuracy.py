"""The benchmark of converted models on made-up data: rows, resuming, and what FX cannot trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import create_conv2d
from torch import nn

import benchmarks.accuracy.run
import benchmarks.hosts.accuracy as hosts
from benchmarks.accuracy import tables as accuracy_tables
from benchmarks.data import tasks as loaders
from benchmarks.processor import processor

PWLQ = "PWLQ joint, asymmetric"


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    for task in ("cifar10", "imagenet"):
        monkeypatch.setitem(accuracy_tables.CALIBRATION, task, 16)


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_width_stands_beside_uniform_grids_that_store_as_much() -> None:
    cases = [(c.method, c.weight_bits, c.activation_bits) for c in hosts.cases("cifar10", "fx", 9)]
    # FX on x86 keeps a bit of activations in reserve (reduce_range), PT2E does not.
    assert cases[0] == (hosts.STOCK, 8, 7)
    assert next(hosts.cases("cifar10", "pt2e", 9)).activation_bits == 8
    assert [x[1:] for x in cases if x[0] == PWLQ] == [(6, 8), (4, 8), (4, 4)]
    uniform = [(8, 8), (6, 8), (7, 8), (4, 8), (5, 8), (4, 4), (5, 4)]
    for method in hosts.UNIFORM:
        assert [x[1:] for x in cases if x[0] == method] == uniform
    assert len(cases) == len(set(cases)) == 18


@pytest.mark.slow
def test_measures_writes_and_resumes(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hosts, "WIDTHS", ((4, 4),))
    monkeypatch.setattr(hosts, "UNIFORM", ("uniform clipped, symmetric",))
    out = tmp_path / "new" / "found.jsonl"
    arguments = ["--data", str(data), "--model", "cifar10", "--host", "fx", "--out", str(out)]
    assert hosts.main(arguments) == 0
    rows = entries(out)
    assert [(e["method"], e["weight_bits"]) for e in rows] == [
        (hosts.STOCK, 8),
        ("uniform clipped, symmetric", 4),
        ("uniform clipped, symmetric", 5),
        (PWLQ, 4),
    ]
    for entry in rows:  # 19 convolutions and one linear layer
        assert (entry["quantized"], entry["left_out"], entry["int8_kernels"]) == (20, [], 20)
        assert entry["images"] == 40
        assert entry["reason"] is None
    lines = out.with_suffix(".md").read_text().splitlines()
    assert "## CIFAR-10 ResNet-20, 40 images" in "\n".join(lines)
    row = next(line for line in lines if line.startswith(f"| {PWLQ} |"))
    shown = f"| {rows[-1]['top1']:.2f} | {rows[-1]['agreement']:.2f} | 20 / 0 | 20 |"
    shown += f" {processor()} |"
    assert row == f"| {PWLQ} | torch.ao FX | 4 / 5 | 4 {shown}"
    assert any("16 `train` images calibrate" in line and "1 seed" in line for line in lines)
    # Stopped within a line: that one is measured again, with the same result, nothing else is.
    old_lines = out.read_text().splitlines()
    out.write_text("\n".join([*old_lines[:-1], old_lines[-1][:30]]))
    capsys.readouterr()
    assert hosts.main(arguments) == 0
    assert capsys.readouterr().err.count("agreement") == 1
    after = out.read_text().splitlines()
    assert after[: len(old_lines) - 1] == old_lines[:-1]
    again, before = json.loads(after[-1]), rows[-1]
    assert again.pop("seconds") > 0
    before.pop("seconds")
    assert again == before
    assert hosts.main(arguments) == 0
    assert out.read_text().splitlines() == after


class Padded(nn.Module):
    """A network whose SAME padding depends on its input's size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = create_conv2d(3, 8, 3, stride=2, padding="same")
        self.bn = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, groups=8)
        self.pool, self.linear = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.deep(self.bn(self.conv(x)).relu())
        out: torch.Tensor = self.linear(self.pool(x).flatten(1))
        return out


@pytest.fixture
def padded(monkeypatch: pytest.MonkeyPatch) -> loaders.Task:
    torch.manual_seed(0)
    images = torch.randn(12, 3, 16, 16) * torch.arange(1, 13).view(12, 1, 1, 1)
    task = loaders.Task("imagenet", Padded().eval(), images, torch.arange(12) % 10, None, 10.0)
    monkeypatch.setitem(loaders.LOADERS, "imagenet", lambda folder: task)
    monkeypatch.setattr(hosts, "WIDTHS", ((6, 8),))
    return task


def test_fx_says_why_it_has_no_accuracy(
    padded: loaders.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def distil(*arguments: object, **options: object) -> torch.Tensor:
        raise AssertionError("a model that cannot be traced needs no images")

    monkeypatch.setattr(benchmarks.accuracy.run, "distil", distil)
    monkeypatch.setattr(hosts, "traceable", lambda subject: subject.model)  # not restored
    out = tmp_path / "found.jsonl"
    assert (
        hosts.main(["--data", ".", "--model", "imagenet", "--host", "fx", "--out", str(out)]) == 0
    )
    outcomes = entries(out)
    assert len(outcomes) == 6
    for entry in outcomes:
        assert entry["top1"] is None
        assert "symbolically traced variables cannot be used" in entry["reason"]
    text = out.with_suffix(".md").read_text()
    rows = [line for line in text.splitlines() if "| all | all | none: " in line]
    assert len(rows) == 4  # one for each method, whatever the widths
    assert sum("zaq_pt2e takes models with control flow" in row for row in rows) == 3


def test_fx_takes_its_restored_layers(padded: loaders.Task, tmp_path: Path) -> None:
    out = tmp_path / "found.jsonl"
    options = ["--model", "imagenet", "--host", "fx", "--only", "PWLQ", "--out", str(out)]
    assert hosts.main(["--data", ".", *options]) == 0
    (entry,) = entries(out)
    assert (entry["quantized"], entry["left_out"], entry["int8_kernels"]) == (3, [], 3)
    assert entry["agreement"] > 60  # 12 images, by chance about 10


def test_pt2e_takes_it_on_int8_kernels(padded: loaders.Task, tmp_path: Path) -> None:
    out = tmp_path / "found.jsonl"
    options = ["--model", "imagenet", "--host", "pt2e", "--only", "PWLQ", "--out", str(out)]
    assert hosts.main(["--data", ".", *options]) == 0
    (entry,) = entries(out)
    assert (entry["quantized"], entry["left_out"], entry["int8_kernels"]) == (3, [], 3)
    with torch.no_grad():
        expected = padded.model(padded.images).argmax(1)
    right = [int(a == b) for a, b in zip(expected, padded.labels, strict=True)]
    assert entry["float_top1"] == pytest.approx(100 * sum(right) / 12)
    assert entry["agreement"] > 60  # 12 images, by chance about 10
    assert "depthwise layers at uniform int8" in out.with_suffix(".md").read_text()


def test_other_errors_are_not_taken_for_the_hosts_limits(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(bed: object, case: object) -> None:
        raise ValueError("something else")

    monkeypatch.setitem(hosts.CONVERT, "fx", broken)
    with pytest.raises(ValueError, match="something else"):
        hosts.main(["--data", str(data), "--model", "cifar10", "--out", str(tmp_path / "x.jsonl")])
    assert not (tmp_path / "x.jsonl").exists()


def test_nncf_rows_say_where_images_and_biases_came_from() -> None:
    cases = list(hosts.cases("cifar10", "nncf", 9))
    assert (cases[0].method, cases[0].weight_bits, cases[0].activation_bits) == (hosts.STOCK, 8, 8)
    ours = cases[1:]
    wide, ours = [c for c in ours if c.weight_bits == 8], [c for c in ours if c.weight_bits < 8]
    assert [case.method for case in wide] == list(hosts.UNIFORM)  # PWLQ's levels are not int8
    assert all(case.spec == accuracy_tables.METHODS[PWLQ](case.weight_bits) for case in ours)
    assert {(c.weight_bits, c.activation_bits) for c in ours} == {(6, 8), (4, 8), (4, 4)}
    assert sum(case.data_free for case in ours) == 4
    assert [c.activation_bits for c in ours if "zero-shot" in c.method] == [4]
    assert not any(case.data_free for case in hosts.cases("imagenet", "nncf", 9))


@pytest.mark.slow
def test_nncf_runs_on_openvinos_int8_kernels(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "WIDTHS", ((4, 4),))
    out = tmp_path / "found.jsonl"
    options = ["--model", "cifar10", "--host", "nncf", "--only", "NNCF's", "--out", str(out)]
    assert hosts.main(["--data", str(data), *options]) == 0
    (entry,) = entries(out)
    assert (entry["quantized"], entry["left_out"], entry["int8_kernels"]) == (20, [], 20)
    assert "| NNCF, OpenVINO | 4 / 5 | 4 |" in out.with_suffix(".md").read_text()
