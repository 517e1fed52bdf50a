"""Settings: the same from flags and files, and nonsense is refused in one sentence."""

from __future__ import annotations

import argparse
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import torch

from zaq_plugin.image_counts import CALIBRATION_IMAGES
from zaq_plugin.pwlq import PWLQSpec, UniformSpec
from zaq_plugin.strategies import Request
from zaq_plugin.zero_shot.config import PRESETS
from zaq_timm.cli import build_parser
from zaq_timm.zoo import settings as module
from zaq_timm.zoo.command import GROUPS, read_arguments
from zaq_timm.zoo.light import format_in_words, weight_spec
from zaq_timm.zoo.quantities import Budget, input_shape, parse_budget, seconds_of, size_in_bytes
from zaq_timm.zoo.settings import Settings


def parsed(*words: str) -> Settings:
    args: argparse.Namespace = build_parser().parse_args(["run", *words])
    return read_arguments(args)


def test_the_command_makes_as_many_images_as_a_request() -> None:
    request = Request(4, 8, example_inputs=(torch.zeros(1, 3, 8, 8),))
    assert Settings().calibration_images == request.count(trains=False) == CALIBRATION_IMAGES


def test_every_setting_is_a_flag() -> None:
    flags = {name for names in GROUPS.values() for name in names}
    assert flags | {"models"} == {f.name for f in fields(Settings)}


def test_presets_are_those_of_zero_shot_training() -> None:
    assert set(module.PRESETS) == set(PRESETS)


CHANGED: dict[str, Any] = {
    "models": ["resnet18", "vit*"],
    "exclude": ["*large*"],
    "checkpoint": "x.safetensors",
    "model": "resnet18",
    "num_classes": 7,
    "pretrained": True,
    "weights": "uniform5",
    "activations": 6,
    "depthwise": "as-told",
    "host": "fx",
    "zero_shot": "fast",
    "sensitivity": True,
    "budget": "4.5bits",
    "export": "onnx",
    "eval": "images",
    "eval_images": 100,
    "calibration": "noise",
    "calibration_images": 16,
    "test_images": 8,
    "distill_steps": 3,
    "input_size": "3x64x64",
    "mean": "0.5",
    "std": "0.2,0.25,0.3",
    "batch": 4,
    "seed": 3,
    "out": "elsewhere",
    "jobs": 2,
    "threads": 3,
    "memory": "4GB",
    "timeout": "30m",
    "ranks": 2,
    "cluster": "ray",
    "retry": "failed",
    "restart": True,
    "dry_run": True,
    "quiet": True,
    "json": True,
}


def as_flags(values: dict[str, Any]) -> list[str]:
    words = list(values["models"])
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag)
        elif isinstance(value, list):
            words += [w for v in value for w in (flag, v)] if name != "models" else []
        else:
            words += [flag, str(value)]
    return words


def as_toml(values: dict[str, Any]) -> str:
    def word(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, list):
            return "[" + ", ".join(f'"{v}"' for v in value) + "]"
        return str(value) if isinstance(value, int) else f'"{value}"'

    return "".join(f"{name.replace('_', '-')} = {word(v)}\n" for name, v in values.items())


def test_flags_toml_and_yaml_say_the_same(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="YAML settings need PyYAML")
    # A strategy goes with hardly anything; test_strategies.py reads it from all three.
    assert {*CHANGED, "strategy"} == {f.name for f in fields(Settings)}
    (tmp_path / "zoo.toml").write_text(as_toml(CHANGED))
    (tmp_path / "zoo.yaml").write_text(yaml.safe_dump(CHANGED))
    by_flags = parsed(*as_flags(CHANGED))
    defaults = asdict(Settings())
    assert all(asdict(by_flags)[name] != defaults[name] for name in CHANGED)
    for name in ("zoo.toml", "zoo.yaml"):
        assert parsed("--settings", str(tmp_path / name)) == by_flags


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "zoo.toml"
    path.write_text('models = "resnet18"\njobs = 3\nquiet = true\n')
    settings = parsed("--settings", str(path), "--jobs", "2", "--no-quiet", "resnet34")
    assert (settings.models, settings.jobs, settings.quiet) == (("resnet34",), 2, False)
    assert parsed("--settings", str(path)).models == ("resnet18",)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.toml", "jbos = 2\n", "no setting 'jbos'. Did you mean 'jobs'?"),
        ("a.toml", "jobs = \n", "a.toml: "),
        ("a.toml", "jobs = 'two'\n", "jobs must be a whole number; got 'two'"),
        ("a.yaml", "- jobs\n", "expected names and values, got a list"),
        ("a.yaml", "jobs: [2\n", "not valid YAML"),
        ("a.json", "{}", "ends in .toml, .yaml or .yml"),
        ("a.yaml", "quiet: 1\n", "quiet must be true or false; got 1"),
    ],
)
def test_files_that_make_no_sense(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises((ValueError, TypeError)) as caught:
        parsed("--settings", str(tmp_path / name))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"weights": "pwlq7"}, "weights must be pwlq2 to pwlq6"),
        ({"weights": "int4"}, "got 'int4'"),
        ({"activations": 1}, "activations must have 2 to 8 bits; got 1"),
        ({"host": "onnx"}, "auto, executorch, fx, litert, nncf, pt2e, simulated; got 'onnx'"),
        ({"export": "onxx"}, "none, onnx, pte, tflite, pt2, or several of these joined by comm"),
        ({"export": "onnx,onnx"}, "joined by commas; got 'onnx,onnx'"),
        ({"export": "none,onnx"}, "joined by commas; got 'none,onnx'"),
        ({"export": "pte", "activations": 4}, "multiply int8 by int8; use activations=8, not 4."),
        ({"jobs": 0}, "jobs must be at least 1; got 0"),
        ({"jobs": True}, "jobs must be a whole number; got True"),
        ({"models": "resnet18"}, "models must be a list of texts"),
        ({"budget": "small"}, "budget must be stored bits (4.5bits) or a size (1.2MB)"),
        ({"budget": "64bits"}, "budget must be 1 to 32 stored bits; got 64"),
        ({"memory": "lots"}, "memory must be a size such as 800MB or 4GB; got 'lots'"),
        ({"timeout": "soon"}, "timeout must be a time such as 90s, 30m or 2h; got 'soon'"),
        ({"mean": "grey"}, "mean must be one number, or one a channel (numbers such as"),
        ({"std": "0.5,0"}, "std must be one number, or one a channel (numbers above 0"),
        (
            {"mean": "0.4,0.4,0.4", "input_size": "1x8x8"},
            "mean has 3 numbers, and images of input_size=1x8x8 have 1 channel",
        ),
        ({"input_size": "224"}, "input_size must be CHANNELSxHEIGHTxWIDTH"),
        ({"checkpoint": "a.pt"}, "checkpoint needs model"),
        ({"model": "resnet18"}, "pass the name itself as an argument, or add checkpoint"),
        ({"ranks": 2}, "ranks=2 shares zero-shot training among processes"),
        ({"cluster": "slurm"}, "cluster must be ray or ray:ADDRESS; got 'slurm'"),
        ({"budget": "4bits", "weights": "minmax4"}, "use weights=pwlqN or uniformN"),
    ],
)
def test_values_that_make_no_sense(values: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        Settings(**values)
    assert words in str(caught.value)


def test_formats() -> None:
    assert weight_spec("pwlq3") == PWLQSpec(bits=3)
    assert weight_spec("uniform5") == UniformSpec(5, "asymmetric", "mse")
    assert weight_spec("minmax8") == UniformSpec(8, "asymmetric", "minmax")


def test_units() -> None:
    assert parse_budget("4.5bits") == Budget(bits=4.5)
    assert parse_budget("1.2MB") == Budget(size=1_200_000)
    assert parse_budget("") is None
    assert size_in_bytes("memory", "2GiB") == 2 * 2**30
    assert size_in_bytes("memory", "1.5 GB") == 1_500_000_000
    assert [seconds_of("timeout", t) for t in ("90s", "30m", "1.5h")] == [90, 1800, 5400]
    assert input_shape("1x28x32") == (1, 28, 32)


def test_what_results_share_leaves_out_where_and_how_fast() -> None:
    shared = Settings().shared
    assert not shared.keys() & {"models", "out", "jobs", "threads", "timeout", "quiet", "retry"}
    assert {"weights", "activations", "seed", "eval", "batch", "ranks"} <= shared.keys()


@pytest.mark.parametrize("text", ["pwlq2", "pwlq6", "uniform2", "uniform8", "minmax4"])
def test_a_format_in_words_is_the_beginning_of_its_label(text: str) -> None:
    assert weight_spec(text).label.startswith(format_in_words(text) + " (")
    with pytest.raises(ValueError, match="weights must be pwlq2 to pwlq6"):
        format_in_words(text[:-1] + "9")
