"""Choosing settings on images held back: the judge, rows that survive, tables."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.field import choice as field_choice
from benchmarks.field.choice import judged, main, page
from benchmarks.field.jobs import job
from benchmarks.rows import read_rows


class Shifted(nn.Module):
    """Answers with its input, the first class raised."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tensor([1.0, 0.0, 0.0])


def test_the_judge_counts_decisions_and_measures_divergence() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 2.0]])
    got = judged(Shifted(), logits, logits, 3)
    assert got["agreement"] == 75.0
    p = logits.double().softmax(1)
    q = (logits.double() + torch.tensor([1.0, 0.0, 0.0])).softmax(1)
    wanted = (p * (p / q).log()).sum(1).mean()
    assert got["kl"] == pytest.approx(float(wanted), abs=1e-5)
    assert judged(nn.Identity(), logits, logits, 2) == {"agreement": 100.0, "kl": 0.0}


def test_tables_have_a_line_for_each_setting_and_show_what_was_tested() -> None:
    def row(count: int, seed: int, kl: float, **more: Any) -> dict[str, Any]:
        return {
            "job": {**job("lite0", "pwlq+gptq", "4/8", seed), "count": count},
            "held_back": {"agreement": 90.0, "kl": kl},
            "images_seconds": 8.0,
            "seconds": 2.0,
            **more,
        }

    tested = {"test": {"agreement": 91.25, "score": 80.0}}
    text = page([row(64, 0, 0.1), row(16, 0, 0.2), row(16, 1, 0.4, **tested)]).markdown()
    assert "## ImageNet EfficientNet-Lite0, 400 images, 4/8" in text
    lines = [line for line in text.splitlines() if line.startswith("| `pwlq+gptq`")]
    assert lines == [
        "| `pwlq+gptq` | 16 | 2 | 90.00 ± 0.00 | 0.3000 ± 0.1414 | 91.25 | 80.00 | 8 | 2 |",
        "| `pwlq+gptq` | 64 | 1 | 90.00 | 0.1000 |  |  | 8 | 2 |",
    ]


@pytest.mark.slow
def test_settings_are_judged_on_other_images_than_they_calibrate_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(field_choice.HELD_BACK, "cifar10", 6)
    out, cache = tmp_path / "choice.jsonl", tmp_path / "cache"
    arguments = ["--data", str(data), "--model", "cifar10", "--method", "pwlq", "--bits", "4/8"]
    arguments += ["--images", "4", "8", "--cache", str(cache), "--out", str(out)]
    assert main([*arguments, "--test"]) == 0
    rows = read_rows(out)
    assert [row["job"]["count"] for row in rows] == [4, 8]
    assert all(0 <= row["test"]["agreement"] <= 100 and row["held_back"]["kl"] > 0 for row in rows)
    made = {path.name: load_file(path)["images"] for path in cache.iterdir()}
    assert sorted(len(images) for images in made.values()) == [4, 6, 8]
    held_back = made["cifar10-leaves-6-1.0-1000.safetensors"]
    for name, images in made.items():
        same = (images[:, None] == held_back).flatten(2).all(2)
        assert bool(same.any()) == (name == "cifar10-leaves-6-1.0-1000.safetensors")
    assert out.with_suffix(".md").read_text() == page(rows).markdown()
    capsys.readouterr()
    assert main([*arguments, "--test"]) == 0
    assert (read_rows(out), capsys.readouterr().out) == (rows, "")
