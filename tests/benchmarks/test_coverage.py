"""The coverage benchmark: what counts as done, and what its table says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

timm = pytest.importorskip("timm", reason="families are timm's")

from benchmarks.coverage import networks  # noqa: E402
from benchmarks.coverage import run as coverage  # noqa: E402


def cover(model: str, way: str, tmp_path: Path) -> dict[str, Any]:
    payload = {"family": "a", "model": model, "way": way}
    return coverage.cover(payload, tmp_path, lambda *_: None)


@pytest.mark.parametrize("way", ["zaq", "torchao"])
def test_a_model_is_done_when_its_layers_are_quantized(tmp_path: Path, way: str) -> None:
    row = cover("test_resnet", way, tmp_path)
    assert "status" not in row
    model, images = networks.make("test_resnet")
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert row["layers"] == len(layers)
    assert row["input"] == "x".join(map(str, images.shape[1:])) == "3x64x64"
    assert row["parameters"] == sum(p.numel() for p in model.parameters())
    assert row["quantized"] == row["layers"] or way == "torchao"
    assert row["quantized"] >= 1
    assert row["sqnr_db"] > 5


def test_a_way_that_fails_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise TypeError("no such thing\nat all")

    monkeypatch.setitem(coverage.WAYS, "zaq", broken)
    row = cover("test_resnet", "zaq", tmp_path)
    assert (row["status"], row["reason"]) == ("left out", "TypeError: no such thing")


def test_an_output_that_is_not_finite_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def infinite(*_: object) -> coverage.Made:
        return (lambda x: torch.full((len(x), 1000), float("nan"))), 1, 1, []

    monkeypatch.setitem(coverage.WAYS, "zaq", infinite)
    assert cover("test_resnet", "zaq", tmp_path)["status"] == "failed"


@pytest.mark.slow
def test_test_models_stand_for_no_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm.models, "list_modules", lambda: ["mlp_mixer"])
    (entry,) = networks.smallest_models().items()
    assert entry[0] == "mlp_mixer"
    assert entry[1] in timm.list_models(module="mlp_mixer")
    with torch.device("meta"):
        sizes = {
            n: sum(p.numel() for p in timm.create_model(n).parameters())
            for n in timm.list_models(module="mlp_mixer")
        }
    assert sizes[entry[1]] == min(sizes.values())


def test_the_table_counts_what_was_run() -> None:
    measured = {"measured": {"seconds": 60.0}}
    rows = {
        "a.zaq": {"status": "done", "quantized": 3, "layers": 4, "input": "3x64x64", **measured},
        "b.zaq": {"status": "left out", "reason": "a | b", "input": "3x96x96", **measured},
        "a.nncf": {"status": "done", "quantized": 4, "layers": 4, **measured},
    }
    text = coverage.markdown(rows, {"a": "m1", "b": "m2"})
    assert "| zaq_pt2e, PWLQ W4A8 | 1 of 2 | 50.0 % | 3 of 4 | 2 |" in text
    assert "| NNCF, stock W8A8 | 1 of 1 | 100.0 % | 4 of 4 | 1 |" in text
    assert "| a | m1 | 3x64x64 | 3 of 4 ! | 4 of 4 |" in text
    assert "| b | m2 | 3x96x96 | **left out**: a \\| b | not run |" in text
