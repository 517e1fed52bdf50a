"""Protocol footnotes: what rows share, what sets them apart, what they keep silent about."""

from zaq_plugin.report import ResultRow
from zaq_plugin.report.protocol import footnotes, protocol_text

FULL = {
    "first_last": "8 bits",
    "residual_adds": False,
    "symmetry": "symmetric",
    "granularity": "per channel",
    "calibration": "256 images",
}


def row(method, protocol, bits=4):
    return ResultRow(method, bits, bits, bits, bits, protocol=protocol)


def test_words_follow_the_standard_order_and_unknown_keys_come_last():
    text = protocol_text({"my_thing": 2.5, "calibration": ["a", "b"], "residual_adds": True})
    assert text == "residual adds: yes; calibration data: a, b; my thing: 2.5"


def test_shared_entries_are_told_once_and_differences_marked():
    rows = [
        row("FP32", {}, 32),
        row("a", FULL),
        row("b", FULL | {"symmetry": "asymmetric"}),
        row("c", FULL),
    ]
    shared, marks, texts = footnotes(rows)
    assert shared == (
        "bits of first and last layer: 8 bits; residual adds: no; granularity: per channel; "
        "calibration data: 256 images"
    )
    assert marks == ["", "a", "b", "a"]
    assert texts == {"a": "symmetry: symmetric", "b": "symmetry: asymmetric"}


def test_silence_is_told():
    shared, marks, texts = footnotes([row("a", {}), row("b", {})])
    assert shared == (
        "not stated: bits of first and last layer, residual adds, symmetry, granularity, "
        "calibration data"
    )
    assert marks == ["", ""]
    assert texts == {}


def test_silence_of_one_row_is_a_footnote():
    partial = {k: v for k, v in FULL.items() if k != "calibration"}
    shared, marks, texts = footnotes([row("a", FULL), row("b", partial)])
    assert "calibration" not in shared
    assert marks == ["a", "b"]
    assert texts == {"a": "calibration data: 256 images", "b": "not stated: calibration data"}


def test_float_rows_need_no_protocol():
    assert footnotes([row("FP32", {}, 32)]) == ("", [""], {})
    assert footnotes([]) == ("", [], {})


def test_marks_go_on_after_z():
    rows = [row("r", FULL | {"seed": i}) for i in range(28)]
    marks = footnotes(rows)[1]
    assert marks[25:] == ["z", "aa", "ab"]
    assert len(set(marks)) == 28
