"""The README says nothing that is not so: its commands, its code, its picture, its links."""

import re
import shlex
from pathlib import Path

import pytest

from zaq_plugin import PWLQTensor
from zaq_timm.cli import build_parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_both_commands_stand_there_each_with_its_fresh_environment() -> None:
    environment = "python3 -m venv .venv && . .venv/bin/activate\n"
    assert blocks("sh") == [
        environment + "pip install -e '.[all]' && zaq-quantize demo\n",
        environment + "pip install -e '.[test]' && pytest\n",
    ]


def test_ci_finds_the_test_command_as_its_only_match() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (pattern,) = re.findall(r"grep -E '(.*?)' README.md", script)
    matches = [line for line in README.splitlines() if re.search(pattern, line)]
    assert matches == ["pip install -e '.[test]' && pytest"]


def test_every_command_line_of_ours_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    lines = set(re.findall(r"`(zaq-quantize [^`]+)`|&& (zaq-quantize .*)", README))
    lines |= {(line, "") for line in re.findall(r"^\$ (zaq-quantize .*)", README, re.MULTILINE)}
    assert len(lines) >= 5
    for line in {a or b for a, b in lines}:
        if "--help" in line:
            with pytest.raises(SystemExit) as caught:
                build_parser().parse_args(shlex.split(line)[1:])
            assert caught.value.code == 0
        elif line != "zaq-quantize verify":  # named, not called
            build_parser().parse_args(shlex.split(line)[1:])


def test_files_it_points_to_are_there() -> None:
    targets = [t for t in re.findall(r"\]\(([^)]+)\)", README) if "://" not in t]
    assert "docs/report.png" in targets
    for target in targets:
        assert (ROOT / target).is_file(), target


def test_the_code_runs() -> None:
    (code,) = blocks("python")
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    quantized = names["quantized"]
    assert isinstance(quantized, PWLQTensor)
    assert (quantized.mac_bits, quantized.stored_bits) == (4, 5)
    assert names["student"](names["images"]).shape == (256, 10)  # type: ignore[operator]
