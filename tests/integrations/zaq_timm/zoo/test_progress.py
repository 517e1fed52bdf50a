"""Progress: a bar that moves in a terminal, one line anywhere else."""

import io

import pytest
from rich.console import Console

from zaq_timm.zoo.progress import progress


def show(terminal: bool, steps: list[str]) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100)
    with progress(len(steps), "{steps} steps in {seconds} s", console) as step:
        for name in steps:
            step(name)
    return text.getvalue()


def test_outside_a_terminal_there_is_one_line() -> None:
    said = show(False, ["one", "two"])
    assert said.startswith("2 steps in ")
    assert said.endswith(" s\n")
    assert said.count("\n") == 1


def test_in_a_terminal_the_bar_names_the_step_and_counts() -> None:
    said = show(True, ["loading", "saving"])
    assert "saving" in said
    assert "2/2" in said
    assert "steps in" not in said


@pytest.mark.parametrize("terminal", [True, False])
def test_a_failure_passes_through(terminal: bool) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100)

    def fail() -> None:
        with progress(2, "all {steps} done", console) as step:
            step("one")
            raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        fail()
    assert "done" not in text.getvalue()
