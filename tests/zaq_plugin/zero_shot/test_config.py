from __future__ import annotations

import dataclasses
import json

import pytest

from zaq_plugin.zero_shot.config import ZeroShotConfig
from zaq_plugin.zero_shot.presets import PRESETS


@pytest.mark.parametrize("preset", PRESETS)
def test_json_round_trip(preset: str) -> None:
    config = ZeroShotConfig.preset(preset, seed=3, taps=("layer*", "head"))
    again = ZeroShotConfig.from_json(config.to_json())
    assert again == config
    assert again.taps == ("layer*", "head")
    assert hash(again) == hash(config)


def test_it_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ZeroShotConfig().steps = 3  # type: ignore[misc]


def test_an_unknown_setting_is_an_error_that_helps() -> None:
    with pytest.raises(ValueError, match=r"no setting 'stpes'\. Did you mean 'steps'\?"):
        ZeroShotConfig.from_json(json.dumps({"stpes": 3}))
    with pytest.raises(ValueError, match="no setting 'maxshrink'"):
        ZeroShotConfig.preset("fast", maxshrink=0.2)
    with pytest.raises(ValueError, match="no setting 'nothing'"):
        ZeroShotConfig().with_changes(nothing=1)


def test_broken_json() -> None:
    with pytest.raises(ValueError, match="not valid JSON"):
        ZeroShotConfig.from_json("{")
    with pytest.raises(ValueError, match="expected a JSON object, got list"):
        ZeroShotConfig.from_json("[]")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"loss": "l2"}, "loss must be one of 'l1', 'kl'; got 'l2'"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"validate_every": 0}, "validate_every must be at least 1; got 0"),
        ({"student_lr": -1.0}, "student_lr must not be negative; got -1.0"),
        ({"student_lr": float("nan")}, "student_lr must not be negative; got nan"),
        ({"replay_share": 1.5}, "replay_share must be from 0 to 1; got 1.5"),
    ],
)
def test_nonsense_is_refused(changes: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ZeroShotConfig(**changes)  # type: ignore[arg-type]


def test_presets() -> None:
    paper = ZeroShotConfig.preset("paper")
    assert (paper.loss, paper.student_steps, paper.images) == ("l1", 5, "generator")
    assert paper.alpha > 0
    assert paper.beta > 0
    extras = ("bn_weight", "margin", "step_lr", "edge_lr", "feature_weight", "mixup", "low_pass")
    assert all(getattr(paper, name) == 0 for name in extras)
    assert not paper.reconstruct
    default, fast = ZeroShotConfig.preset("default"), ZeroShotConfig.preset("fast")
    assert default.reconstruct
    assert fast.reconstruct
    assert fast.steps < default.steps
    with pytest.raises(ValueError, match="no preset 'best'; known are paper, default, fast"):
        ZeroShotConfig.preset("best")
