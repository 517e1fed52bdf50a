"""The one writer of tables and pages."""

import pytest

from benchmarks.tables import (
    Grid,
    Page,
    mean_and_deviation,
    mean_and_spread,
    median_and_spread,
    table,
)


def test_mean_and_spread() -> None:
    assert mean_and_spread([]) == "–"
    assert mean_and_spread([1.5]) == "1.50"
    assert mean_and_spread([1.0, 4.0, 2.5]) == "2.50 (1.00 to 4.00)"


def test_median_and_spread() -> None:
    assert median_and_spread([8.0, 30.0, 10.0]) == "10 (8 to 30)"
    assert median_and_spread([0.12345]) == "0.123"


def test_mean_and_deviation() -> None:
    assert mean_and_deviation([]) == ""
    assert mean_and_deviation([1.5]) == "1.50"
    assert mean_and_deviation([1.0, 3.0], 1) == "2.0 ± 1.4"


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


def test_html_is_escaped() -> None:
    html = Page("a < b", [Grid(["x"], [["**<1>**"]])]).html()
    assert "a &lt; b" in html
    assert "<strong>&lt;1&gt;</strong>" in html


def test_a_bar_in_a_cell_parts_no_columns() -> None:
    assert table(["a"], [["x | y"]])[2] == "| x \\| y |"
