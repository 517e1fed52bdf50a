"""How a model's images are normalised, and that a user is told where it was assumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from zaq_timm import cli
from zaq_timm.zoo.command import notes_of
from zaq_timm.zoo.errors import LeftOut
from zaq_timm.zoo.models import load
from zaq_timm.zoo.normalisation import in_words, normalisation
from zaq_timm.zoo.references import Reference
from zaq_timm.zoo.settings import Settings

WAY_OUT = "pass --mean and --std (for pixels from 0 to 1: --mean 0 --std 1)"
TIMMS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def test_options_win_and_one_number_is_for_all_channels() -> None:
    settings = Settings(mean="0", std="0.5,0.25,0.125")
    mean, std, notes = normalisation(TIMMS, settings, 3)
    assert mean == (0, 0, 0)
    assert std == (0.5, 0.25, 0.125)
    assert notes == ()


def test_options_reach_the_model_and_silence_the_remark() -> None:
    loaded = load(Reference("zoo_own_models:branching"), Settings(mean="0.5", std="0.25"))
    assert (loaded.inputs.mean, loaded.inputs.std) == ((0.5,) * 3, (0.25,) * 3)
    assert loaded.notes == ()


def test_what_was_assumed_is_told_with_its_values_and_the_way_out() -> None:
    mean, std, (note,) = normalisation({}, Settings(), 1)
    assert mean == pytest.approx((sum(TIMMS["mean"]) / 3,))
    assert std == pytest.approx((sum(TIMMS["std"]) / 3,))
    assert note.startswith("the model does not say its images' mean and std: ImageNet's is taken")
    assert f'{{"mean": (0.5,), "std": (0.25,)}}, or {WAY_OUT}' in note
    assert note.endswith("here mean 0.449, std 0.226")
    assert normalisation({}, Settings(mean="0.5"), 1)[2][0].startswith(
        "the model does not say its images' std: ImageNet's"
    )


@pytest.mark.parametrize("channels", [1, 4])
def test_values_of_other_channels_are_told(channels: int) -> None:
    """timm's three values for a grey or a four-channel network."""
    mean, std, (note,) = normalisation(TIMMS, Settings(), channels)
    assert len(mean) == len(std) == channels
    assert note.startswith(
        f"the model's mean and std are not of {channels} channel(s), as its images are: one value"
    )
    assert WAY_OUT in note


@pytest.mark.parametrize(
    ("config", "settings", "text"),
    [
        ({"mean": "grey"}, {}, "its pretrained_cfg has mean='grey'; expected a number for each"),
        ({"std": (0.5, 0)}, {}, r"its pretrained_cfg has std=\(0.5, 0\); expected numbers above 0"),
        ({}, {"mean": "1,2,3"}, "--mean has 3 numbers, and the model's images have 1 chan"),
    ],
)
def test_what_is_no_normalisation(
    config: dict[str, Any], settings: dict[str, str], text: str
) -> None:
    with pytest.raises(LeftOut, match=text):
        normalisation(config, Settings(**settings), 1)


def test_a_single_number_in_the_models_own_is_for_all_channels() -> None:
    assert normalisation({"mean": 0.5, "std": 1}, Settings(), 2) == ((0.5,) * 2, (1.0,) * 2, ())


def test_the_plan_says_what_is_known(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def line(*words: str) -> str:
        out = str(tmp_path / "zoo")
        assert cli.main(["run", *words, "--dry-run", "--out", out]) == 0
        lines = capsys.readouterr().out.splitlines()
        return next(text for text in lines if text.startswith("images "))

    own = line("zoo_own_models:tiny", "--input-size", "1x8x8")
    assert "1x8x8; mean and std as the model's pretrained_cfg says, ImageNet's where it" in own
    assert f"if that is wrong, {WAY_OUT}" in own
    assert "ImageNet's three values become one for images of 1 channel(s)" in own
    assert line("test_resnet").endswith("; mean and std as timm says")
    said = line("zoo_own_models:tiny", "--input-size", "1x8x8", "--mean", "0", "--std", "1")
    assert said.endswith("1x8x8; mean 0; std 1")
    assert in_words(Settings(mean="0.5"), False).startswith("mean 0.5; std as the model's")


def test_the_terminal_repeats_what_was_assumed_and_names_the_models() -> None:
    rows = [{"key": f"m{i}", "warnings": ["ImageNet's is taken"]} for i in range(5)]
    assert notes_of([*rows, {"key": "quiet"}]) == ["m0, m1, m2 and 2 more: ImageNet's is taken"]
