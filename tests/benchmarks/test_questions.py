"""What can be asked, and whether --help teaches it."""

import importlib
import sys

import pytest

from benchmarks.__main__ import questions

FOLDERS = ("accuracy", "coverage", "deploy", "devices", "field", "format", "overflow", "runtimes")
OTHERS = ("speed", "zero_shot", "zoo", "hosts.accuracy", "hosts.methods", "hosts.speed")


def test_every_question_is_listed_with_a_sentence() -> None:
    listed = questions()
    assert {f"benchmarks.{name}" for name in (*FOLDERS, *OTHERS)} <= set(listed)
    assert all(words.endswith(".") for words in listed.values())
    assert "benchmarks.peers" not in listed


@pytest.mark.parametrize("name", [name for name in questions() if name != "benchmarks.speed"])
def test_help_says_what_is_asked_what_it_needs_and_how_long(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in (f"{name}.run", f"{name}.__main__", name):
        try:
            module = importlib.import_module(part)
        except ModuleNotFoundError as error:
            if not part.startswith(str(error.name)):
                pytest.skip(f"{error.name} is not installed")
            continue
        break
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        module.main()
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert questions()[name] in said
    assert f"    python -m {name}" in said, "an example"
    assert "\nNeeds " in said
    assert "Takes " in said.replace("\n", " ")
