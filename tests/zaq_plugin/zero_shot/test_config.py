from __future__ import annotations

import dataclasses
import json
import pickle
from dataclasses import replace

import pytest

from zaq_plugin.zero_shot.config import PRESETS, ZeroShotConfig
from zaq_plugin.zero_shot.config_parts import FLAT, LossSettings, TrainingSettings


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


def test_every_flat_setting_is_read_and_given_where_its_part_is() -> None:
    """68 names of before, each in one part; what one side is told, the other reads."""
    assert len(FLAT) + 5 == 68
    default = ZeroShotConfig()
    for flat, (part, own) in FLAT.items():
        value = getattr(getattr(default, part), own)
        assert getattr(default, flat) is value
        changed = ("x", "y") if flat == "taps" else not value if isinstance(value, bool) else value
        again = ZeroShotConfig(**{flat: changed})
        assert getattr(getattr(again, part), own) == changed
        by_part = replace(getattr(default, part), **{own: changed})
        assert ZeroShotConfig(**{part: by_part}) == again
        assert ZeroShotConfig(**{part: {own: changed}}) == again


def test_parts_and_flat_settings_mix() -> None:
    config = ZeroShotConfig(training=TrainingSettings(lr=1e-2, step_lr=0.0), student_lr=2e-2)
    assert (config.training.lr, config.step_lr) == (2e-2, 0.0)
    again = config.with_changes(patience=3, training={"lr": 1.0})
    assert (again.judging.patience, again.training.lr, again.training.step_lr) == (3, 1.0, 1e-3)
    assert replace(config, steps=7).training == config.training
    assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301


def test_texts_of_earlier_versions_are_read() -> None:
    """Their order was another one; what a resumed run compares is what they say."""
    values = json.loads(ZeroShotConfig.preset("fast", seed=3).to_json())
    own = {"seed", "steps", "batch_size", "student_steps", "checkpoint_every"}
    assert set(values) == {*FLAT, *own}
    turned = json.dumps(dict(reversed(values.items())))
    assert ZeroShotConfig.from_json(turned) == ZeroShotConfig.preset("fast", seed=3)


def test_parts_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match=r"student_lr must not be negative; got -1"):
        TrainingSettings(lr=-1)
    with pytest.raises(ValueError, match=r"training has no setting 'rl'; known are optimizer, lr"):
        ZeroShotConfig(training={"rl": 1})
    with pytest.raises(TypeError, match=r"training must be TrainingSettings\(\.\.\.\) or a dict"):
        ZeroShotConfig(training=LossSettings())
    with pytest.raises(AttributeError, match=r"no setting 'studnt_lr'\. Did you mean 'student_lr'"):
        _ = ZeroShotConfig().studnt_lr
