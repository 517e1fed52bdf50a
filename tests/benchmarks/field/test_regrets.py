"""Regrets: the default against the best, over the seeds that they share."""

from typing import Any

import pytest

from benchmarks.field.regrets import QUESTIONS, Question, Setting, line, page

QUESTION = Question(
    "q", ("4/8",), (Setting("mine"), Setting("other", "pwlq"), Setting("third", "x"))
)


def row(method: str, seed: int, kl: float, agreement: float, count: int = 32) -> dict[str, Any]:
    return {
        "network": "lite0", "method": method, "bits": "4/8", "seed": seed, "count": count,
        "source": "leaves", "at": {"kl": kl, "agreement": agreement},
    }  # fmt: skip


def test_only_shared_seeds_count_and_what_is_not_measured_is_a_dash() -> None:
    rows = [
        row("pwlq+gptq", 0, 0.03, 90.0),
        row("pwlq+gptq", 1, 9.0, 1.0),
        row("pwlq", 0, 0.02, 92.0),
        row("pwlq", 0, 0.001, 99.0, count=64),  # another number of images: another question
    ]
    found = line(rows, "lite0", "4/8", QUESTION)
    assert found is not None
    cells, regret = found
    assert regret == pytest.approx(50)
    assert cells == [
        "EfficientNet-Lite0",
        "4/8",
        "1",
        "30.00",
        "20.00",
        "–",
        "other",
        "50 %",
        "+2.00",
    ]


def test_a_default_that_is_best_has_no_regret_and_one_alone_no_line() -> None:
    rows = [row("pwlq+gptq", 0, 0.01, 95.0), row("pwlq", 0, 0.02, 96.0)]
    found = line(rows, "lite0", "4/8", QUESTION)
    assert found is not None
    assert found[0][-3:] == ["itself", "0 %", "+0.00"]
    assert line(rows[:1], "lite0", "4/8", QUESTION) is None
    assert line([rows[0], row("pwlq", 1, 0.02, 96.0)], "lite0", "4/8", QUESTION) is None


def test_the_page_names_every_question() -> None:
    text = page([row("pwlq+gptq", 0, 0.01, 95.0), row("pwlq", 0, 0.02, 96.0)]).markdown()
    assert all(f"## {question.title}" in text for question in QUESTIONS)
    assert "| Error feedback | with | 1 of 1 | 0 % | 0 % | +0.00 |" in text
