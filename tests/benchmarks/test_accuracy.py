"""The accuracy benchmark on a made-up data folder: tables, resuming, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from benchmarks.accuracy import run


@pytest.fixture(scope="module")
def accuracy() -> ModuleType:
    return run


@pytest.mark.slow
def test_measures_writes_and_resumes(
    accuracy: ModuleType,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(accuracy.CALIBRATION, "cifar10", 16)
    monkeypatch.setitem(accuracy.HELD_OUT, "cifar10", 16)
    arguments = [
        "--data",
        str(data),
        "--out",
        str(tmp_path),
        "--widths",
        "4/4",
        "--seeds",
        "0",
        "1",
        "--only",
        "clipped, sy",
    ]
    assert accuracy.main(arguments) == 0
    lines = (tmp_path / "accuracy.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    widths = [(e["weight_bits"], e["corrected"], e["seed"]) for e in entries]
    assert widths == [(w, c, s) for s in (0, 1) for w in (4, 5) for c in (False, True)]
    text = (tmp_path / "accuracy.md").read_text()
    lines_of = [x for x in text.splitlines() if x.startswith("| uniform clipped, symmetric |")]
    assert any("4 / 4" in x and "±" in x for x in lines_of)
    mean = sum(e["top1"] for e in entries if e["weight_bits"] == 4 and not e["corrected"]) / 2
    assert any(x.endswith(f" {mean:.2f} |") for x in lines_of)  # W5A4, then W4A4
    printed = capsys.readouterr().out
    assert "uniform clipped, symmetric + bias correction" in " ".join(printed.split())
    # stopped in the middle of a line: the rest is measured again, nothing else
    content = "\n".join(lines[:-1]) + "\n" + lines[-1][:30] + "\n"
    (tmp_path / "accuracy.jsonl").write_text(content)
    assert accuracy.main(arguments) == 0
    assert "KL" in capsys.readouterr().err
    after = (tmp_path / "accuracy.jsonl").read_text().splitlines()
    assert after[: len(lines) - 1] == lines[:-1]
    again, was = json.loads(after[-1]), entries[-1]
    assert {k: v for k, v in again.items() if k != "seconds"} == {
        k: v for k, v in was.items() if k != "seconds"
    }
    assert accuracy.main(arguments) == 0
    assert (tmp_path / "accuracy.jsonl").read_text().splitlines() == after


def test_seeds_draw_other_images_and_never_test_images(
    accuracy: ModuleType, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.data.tasks import load_task

    task = load_task("cifar10", data)
    bench = accuracy.Bench(task, None, print)
    calibration, held_out = bench.source(0)
    assert (len(calibration), len(held_out)) == (512, 500)
    assert task.train is not None
    rows = {x.numpy().tobytes() for x in task.train}
    used = [x.numpy().tobytes() for x in torch.cat([calibration, held_out])]
    assert set(used) <= rows
    assert len(set(used)) == len(used)
    assert not torch.equal(calibration, bench.source(1)[0])
    assert torch.equal(calibration, accuracy.Bench(task, None, print).source(0)[0])


def test_resnet20_has_shortcuts_without_parameters() -> None:
    from benchmarks.data.tasks import BasicBlock, ResNet20

    torch.manual_seed(0)
    assert sum(p.numel() for p in ResNet20().parameters()) == 269_722  # He et al., 2016: 0.27 M
    block = BasicBlock(4, 8, 2).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.rand(1, 4, 6, 6)
    expected = torch.zeros(1, 8, 3, 3)
    expected[:, 2:6] = x[:, :, ::2, ::2]
    assert torch.equal(block(x), expected)


def test_distilled_images_match_the_statistics() -> None:
    from benchmarks.data.tasks import distil

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    with torch.no_grad():
        model[1].running_mean.copy_(torch.tensor([0.5, -0.5, 0.2, 0.0]))
        model[1].running_var.fill_(0.25)
    images = distil(model, 8, 16, steps=60, batch=4, seed=0)
    assert images.shape == (8, 3, 16, 16)
    with torch.no_grad():
        before = model[0](torch.randn(8, 3, 16, 16)).mean((0, 2, 3)) - model[1].running_mean
        after = model[0](images).mean((0, 2, 3)) - model[1].running_mean
    assert float(after.abs().max()) < 0.35 * float(before.abs().max())
    assert torch.equal(images, distil(model, 8, 16, steps=60, batch=4, seed=0))


def test_missing_files_and_unknown_tasks(tmp_path: Path) -> None:
    from benchmarks.data.tasks import load_task

    with pytest.raises(
        FileNotFoundError, match=r"resnet20\.safetensors is missing; --data must name"
    ):
        load_task("cifar10", tmp_path)
    with pytest.raises(ValueError, match="no task 'mnist'; known are cifar10, imagenet"):
        load_task("mnist", tmp_path)
