"""The README says nothing that is not so: its commands, its code, its picture, its links."""

import re
import shlex
from pathlib import Path

import pytest

from zaq_plugin import PWLQTensor
from zaq_plugin.pwlq.names import FORMATS
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


@pytest.mark.slow
def test_the_code_runs_and_prints_what_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One block after the other, as somebody pastes them."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), names)
    text = capsys.readouterr().out
    assert "PWLQ 4b MAC/5b stored" in text
    assert "pwlq+gptq, simulated: 10 of 10 layers of DigitsResNet quantized" in text
    (top1,) = re.findall(r"top-1: tensor\((0\.\d+)\)", text)
    assert float(top1) > 0.95
    assert "digits.onnx: OK. 10 int8 layers" in text
    assert max(map(len, text.splitlines())) < 250
    quantized = names["quantized"]
    assert isinstance(quantized, PWLQTensor)
    assert (quantized.mac_bits, quantized.stored_bits) == (4, 5)
    assert names["student"](names["images"]).shape == (256, 10)  # type: ignore[operator]
    assert names["converted"](names["images"]).shape == (256, 10)  # type: ignore[operator]


def test_every_format_of_weights_is_named_here_and_in_the_guide() -> None:
    """The first and the last name of each family, as the package reads them."""
    guide = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    for line in FORMATS.values():
        for stem, name in line.names.items():
            if stem in ("pot", "codebook"):
                for bits in (name.low, name.high):
                    assert f"{stem}{bits}`" in README
                    assert f"{stem}{bits}`" in guide
