"""Tables of benchmarks, and who writes them."""

import pytest

from benchmarks.__main__ import questions
from benchmarks.tables import mean_and_spread, median_and_spread, table


def test_mean_and_spread() -> None:
    assert mean_and_spread([]) == "–"
    assert mean_and_spread([1.5]) == "1.50"
    assert mean_and_spread([1.0, 4.0, 2.5]) == "2.50 (1.00 to 4.00)"


def test_median_and_spread() -> None:
    assert median_and_spread([8.0, 30.0, 10.0]) == "10 (8 to 30)"
    assert median_and_spread([0.12345]) == "0.123"


def test_the_last_letter_aligns_the_columns_behind_it() -> None:
    assert table(["a", "b", "c"], [["x", "1", "2"]]) == [
        "| a | b | c |",
        "|---|---:|---:|",
        "| x | 1 | 2 |",
    ]
    assert table(["a", "b"], [], "l")[1] == "|---|---|"


def test_a_line_with_a_cell_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1 cells for the 2 columns \['a', 'b'\]: \['x'\]"):
        table(["a", "b"], [["x"]])


def test_every_question_is_listed_with_a_sentence() -> None:
    listed = questions()
    folders = ("accuracy", "coverage", "deploy", "format", "overflow", "runtimes", "speed")
    assert {f"benchmarks.{name}" for name in (*folders, "zero_shot", "field", "zoo")} <= set(listed)
    assert all(words.endswith(".") for words in listed.values())
