"""The guide's tables: what stands in a cell, and that the committed pages are what the rows say."""

from typing import Any

import pytest

from benchmarks.field.guide import (
    PAGES,
    RESULTS,
    TABLES,
    Line,
    cell,
    cifar10,
    dense,
    dense_agreement,
    filled,
    guide_rows,
    lite0,
    networks,
    seeds_of,
)
from benchmarks.field.jobs import job, rows_with
from benchmarks.rows import read_rows


def row(score: float, method: str = "rq", bits: str = "4/8", seed: int = 0, **more: Any) -> Any:
    images = "real" if more.get("data") == "real" else "synthetic"
    return {
        "job": job("cifar10", method, bits, seed, images=images),
        "score": score,
        "agreement": 90.0,
        "levels": "uniform",
        "data": "synthetic",
        "seconds": 2.0,
        **more,
    }


def test_a_line_has_its_own_rows_alone() -> None:
    rows = [
        row(1.0, "pwlq", levels="pwlq"),
        row(2.0, "pwlq"),
        row(3.0, "pwlq", levels="pwlq", data="real"),
        row(5.0, "pwlq", "4/4", levels="pwlq"),
    ]
    mine = Line("x", "pwlq", "pwlq")
    assert [r["score"] for r in mine.rows(rows, "cifar10", "4/8")] == [1.0]
    assert [r["score"] for r in mine.rows(rows, "cifar10", "4/4")] == [5.0]
    assert mine.rows(rows, "imagenet", "4/8") == []
    real = Line("x", "pwlq", "pwlq", True)
    assert [r["score"] for r in real.rows(rows, "cifar10", "4/8")] == [3.0]


def test_cells_are_means_and_seeds_are_counted_by_column() -> None:
    rows = [row(80.0), row(81.0, seed=1), row(70.0, bits="4/4")]
    assert cell(rows[:2]) == "80.50"
    assert cell(rows[:1], "agreement") == "90.00"
    assert cell([]) == ""
    assert seeds_of(rows) == "1 to 2"
    assert seeds_of(rows[:2]) == "2"
    line = next(text for text in cifar10(rows) if text.startswith("| `rq`"))
    assert line == "| `rq` (min-max) | none |  |  | 80.50 | 70.00 |  |  | 1 to 2 | 2 |"


def test_dense_tables_have_all_scores_and_the_agreement_of_a_few() -> None:
    rows = [row(80.0, method) | {"fp32": 85.0} for method in ("rq", "pwlq", "mct/best")]
    for model in ("imagenet", "camvid", "coco"):
        rows += [r | {"job": r["job"] | {"model": model}} for r in rows[:3]]
    scores, agreements = dense(rows), dense_agreement(rows)
    assert scores[2] == "| float |" + " 85.00 |" * 9
    assert [text.split(" | ")[0] for text in scores[3:]] == [
        "| `rq` (min-max)",
        "| `pwlq@uniform` (bias correction, no PWLQ)",
        "| MCT, gradient-based rounding (its GPTQ)",
    ]
    assert [text.split(" | ")[0] for text in agreements[2:]] == [
        text.split(" | ")[0] for text in scores[4:]
    ]
    assert agreements[2].endswith("|  |  | 90.00 |  |  | 90.00 |  |  | 90.00 |")


def test_networks_are_compared_by_agreement_and_lite0_shows_top_1_too() -> None:
    rows = [row(80.0), row(81.0, "torchao/best", agreement=50.0, data="synthetic")]
    rows += [row(70.0, "rq+bias-correction")]
    lite = [r | {"job": r["job"] | {"model": "lite0"}, "agreement": 60.0} for r in rows]
    text = networks([*rows, *lite])
    assert text[0].startswith("| method | ResNet-20 4/8 | 4/4 | 3/3 | MobileNetV1-0.25 8/8 | 4/8 |")
    assert text[2:] == [
        "| `rq` (min-max) | 90.00 |  |  |  |  |  |  | 60.00 |  |  |  |",
        "| torchao PT2E, histograms | 50.00 |  |  |  |  |  |  | 60.00 |  |  |  |",
    ]
    assert lite0(lite)[2:] == [
        "| `rq` (min-max) |  |  |  | 60.00 / 80.00 |  | 1 | 2 |",
        "| `rq+bias-correction` |  |  |  | 60.00 / 70.00 |  | 1 | 2 |",
        "| torchao PT2E, histograms |  |  |  | 60.00 / 81.00 |  | 1 | 2 |",
    ]


def test_an_unknown_table_is_an_error_and_the_rest_of_a_page_stays() -> None:
    with pytest.raises(ValueError, match="no table 'cifar'; known are cifar10"):
        filled("<!-- table: field, cifar -->\n<!-- end of table -->", [])
    page = "before\n<!-- table: field, cifar10 -->\nold\n<!-- end of table -->\nafter"
    text = filled(page, [row(80.0)])
    assert text.startswith("before\n<!-- table: field, cifar10 -->\n\n| method |")
    assert text.endswith("|\n\n<!-- end of table -->\nafter")
    assert "old" not in text


def test_the_committed_pages_say_what_the_committed_rows_say() -> None:
    every = [r for n in ("field", "field_lite") for r in read_rows(RESULTS / f"{n}.jsonl")]
    every = rows_with(every, RESULTS / "zero_shot.jsonl")
    rows = [r for r in every if "error" not in r]
    assert rows == guide_rows()
    named = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert filled(text, rows) == text, f"{page.name}: run python -m benchmarks.field.guide"
        named |= {name for name in TABLES if f"<!-- table: field, {name} -->" in text}
    assert named == set(TABLES)
