"""Two processes of torchrun train one model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from zoo_two_ranks import images_of, trained

from zaq_timm.zoo.ranks import averaged_gradients, rank_and_size
from zaq_timm.zoo.runner import Plan, run_settings
from zaq_timm.zoo.settings import Settings

HERE = Path(__file__).parent
two_ranks = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch has no gloo, over which processors talk",
)


def test_one_process_shares_nothing() -> None:
    with rank_and_size(1) as ranks, averaged_gradients():
        assert ranks == (0, 1)
        assert not torch.distributed.is_initialized()


@two_ranks
@pytest.mark.slow
def test_steps_are_along_the_mean_of_the_ranks_gradients(tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *launch, str(HERE / "zoo_two_ranks.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    zero, one = (json.loads((tmp_path / f"{r}.json").read_text()) for r in (0, 1))
    assert zero["size"] == 2
    assert zero["inside"] == one["inside"]
    assert zero["outside"] != one["outside"]
    together = trained([images_of(0), images_of(1)])
    for gradient, expected in zip(zero["inside"], together, strict=True):
        torch.testing.assert_close(torch.tensor(gradient), expected)
    alone = trained([images_of(0)])
    for gradient, expected in zip(zero["outside"], alone, strict=True):
        torch.testing.assert_close(torch.tensor(gradient), expected)


@two_ranks
@pytest.mark.slow
def test_a_run_trains_on_two_ranks_and_leaves_one_row(tmp_path: Path) -> None:
    settings = Settings(
        models=("zoo_own_models:tiny",),
        input_size="3x16x16",
        weights="uniform2",
        activations=4,
        zero_shot="fast",
        ranks=2,
        batch=8,
        calibration_images=8,
        test_images=8,
        distill_steps=1,
        out=str(tmp_path),
        quiet=True,
    )
    (row,) = run_settings(settings, Plan.make(settings)).rows.values()
    assert row["status"] == "done", row["reason"]
    before, after = row["zero_shot_divergence"]
    assert after <= before
    place = tmp_path / "models" / row["key"]
    assert {p.name for p in place.iterdir()} == {
        "row.json",
        "details.json",
        "manifest.json",
        "images.png",
        "log.txt",
    }
