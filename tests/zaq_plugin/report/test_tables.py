"""Tables: Markdown read back, text in a real console, both widths in every row."""

import io
import math
import re

import pytest
from rich.console import Console

from zaq_plugin.report import Audit, LayerRecord, ResultRow
from zaq_plugin.report.columns import audit_summary, bit_pair, kilobytes, number, seconds_text, size
from zaq_plugin.report.tables import (
    audit_markdown,
    audit_table,
    results_markdown,
    results_table,
)

PROTOCOL = {
    "first_last": 8,
    "residual_adds": "float",
    "symmetry": "symmetric",
    "granularity": "per channel",
    "calibration": "none",
}
ROWS = [
    ResultRow("FP32", 32, 32, 32, 32, size_bytes=400_000, top1=98.5, agreement=100.0),
    ResultRow(
        "PWLQ | [joint] *x*\n<b>",
        4,
        5,
        8,
        8,
        size_bytes=64_123,
        sqnr_db=26.21,
        top1=98.25,
        agreement=99.5,
        seeds=3,
        spread=0.125,
        protocol=PROTOCOL,
        seconds=3.25,
    ),
    ResultRow("uniform", 4.5, 4.5, 8, 8, sqnr_db=math.inf, protocol=PROTOCOL | {"clip": "mse"}),
]
AUDIT = Audit(
    [
        LayerRecord(
            "a.conv", "Conv2d", 1200, True, spec="PWLQ", mac_bits=4, stored_bits=5, sqnr_db=20.0
        ),
        LayerRecord("b", "Linear", 800, False, "excluded | by name"),
    ]
)


def parse_markdown(text: str) -> tuple[list[dict[str, str]], list[str]]:
    """The first table of a Markdown text, cells unescaped, and the paragraphs after it."""
    lines = text.splitlines()
    cells = []
    rest = []
    for line in lines:
        if line.startswith("|"):
            parts = re.split(r"(?<!\\)\|", line.strip()[1:-1])
            cells.append([re.sub(r"\\(.)", r"\1", p.strip()) for p in parts])
        elif line:
            rest.append(line)
    head, rule, *body = cells
    assert all(re.fullmatch(r":?-+:?", c) for c in rule)
    assert {len(row) for row in cells} == {len(head)}
    return [dict(zip(head, row, strict=True)) for row in body], rest


def test_markdown_reads_back_to_the_rows():
    read, _ = parse_markdown(results_markdown(ROWS))
    assert len(read) == len(ROWS)
    for cells, row in zip(read, ROWS, strict=True):
        mac, stored = map(float, cells["Weight bits, MAC / stored"].split(" / "))
        assert (mac, stored) == (row.weight_mac_bits, row.weight_stored_bits)
        mac, stored = map(float, cells["Activation bits, MAC / stored"].split(" / "))
        assert (mac, stored) == (row.activation_mac_bits, row.activation_stored_bits)
    assert read[1]["Method"] == "PWLQ | [joint] *x* <b>"
    assert read[2]["Method"] == "uniform [a]"
    assert read[1]["Size (kB)"] == "64.1"
    assert read[1]["SQNR (dB)"] == "26.2"
    assert read[1]["Top-1 (%)"] == "98.25 ± 0.12"
    assert read[1]["vs FP32 (points)"] == "−0.25"
    assert read[1]["Agreement (%)"] == "99.50"
    assert read[1]["Seeds"] == "3"
    assert read[1]["Time (s)"] == "3.2"
    assert read[2]["SQNR (dB)"] == "∞"
    assert read[2]["Top-1 (%)"] == "–"
    assert read[0]["vs FP32 (points)"] == "–"


def test_markdown_tells_protocol_widths_and_spread_below():
    _, notes = parse_markdown(results_markdown(ROWS))
    text = "\n".join(notes)
    assert "MAC bits: width of the multiplier. Stored bits: width of one code on disk." in text
    assert "standard deviation over the seeds" in text
    assert "bits of first and last layer: 8; residual adds: float" in text
    assert "clip: mse" in text


def test_one_seed_is_said_and_empty_columns_are_left_out():
    row = ResultRow("a", 4, 4, 8, 8, top1=90.0, protocol=PROTOCOL)
    read, notes = parse_markdown(results_markdown([row]))
    assert list(read[0]) == [
        "Method",
        "Weight bits, MAC / stored",
        "Activation bits, MAC / stored",
        "Top-1 (%)",
    ]
    assert "One seed a row: no spread is known." in notes


def test_gain_over_fp32_has_its_sign_and_comes_from_the_protocol_first():
    rows = [
        ResultRow("FP32 one", 32, 32, 32, 32, top1=90.0),
        ResultRow("FP32 two", 32, 32, 32, 32, top1=80.0),
        ResultRow("told", 4, 4, 8, 8, top1=80.5, protocol={"fp32_top1": 80.0}),
        ResultRow("untold", 4, 4, 8, 8, top1=80.5),
    ]
    read, _ = parse_markdown(results_markdown(rows))
    assert read[2]["vs FP32 (points)"] == "+0.50"
    assert read[3]["vs FP32 (points)"] == "–"


def console_text(table, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 160])
def test_terminal_shows_every_number_whole(width):
    text = console_text(results_table(ROWS, title="Run [1]"), width)
    assert "Run [1]" in text
    for part in ("32/32", "4/5", "8/8", "98.25±0.12", "−0.25", "99.50", "64.1", "∞"):
        assert part in text
    assert "[joint]" in text
    flat = " ".join(text.split())
    assert "Protocol: bits of first and last layer: 8" in flat


def test_audit_in_terminal_and_markdown_gives_reasons():
    text = console_text(audit_table(AUDIT), 120)
    assert "not quantized: excluded | by name" in text
    read, notes = parse_markdown(audit_markdown(AUDIT))
    assert [r["Layer"] for r in read] == ["a.conv", "b"]
    assert read[0]["Bits, MAC / stored"] == "4 / 5"
    assert read[0]["Weights"] == "1,200"
    assert read[1]["Format, or why not quantized"] == "not quantized: excluded | by name"
    assert notes == [audit_summary(AUDIT)]


def test_audit_summary_counts():
    assert audit_summary(AUDIT) == (
        "1 of 2 layers quantized (60.0 % of the weights), mean 4 MAC bits and 5 stored bits a "
        "weight; all weights take 8.0 kB. 1 left alone, each with its reason."
    )
    assert "Nothing was quantized: 1 layers" in audit_summary(Audit(AUDIT.skipped))


def test_empty_tables_are_tables():
    assert parse_markdown(results_markdown([]))[0] == []
    assert "Method" in console_text(results_table([]), 80)


def test_numbers_in_words():
    assert number(float("nan"), 1) == "NaN"
    assert number(-math.inf, 1) == "−∞"
    assert number(-1234.56, 1) == "−1,234.6"
    assert bit_pair(None, None) == "–"
    assert bit_pair(4, 5.58496) == "4 / 5.58"
    assert size(12_500_000) == "12.5 MB"
    assert size(1_500) == "1.5 kB"
    assert kilobytes([1_500, None, 2_000_000]) == ["2", "–", "2,000"]
    assert [seconds_text(s) for s in (0.84, 42.4, 200.0)] == ["0.8 s", "42 s", "3 min 20 s"]
