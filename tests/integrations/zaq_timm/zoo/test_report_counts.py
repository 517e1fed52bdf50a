"""A share is told with the number of images that it is of."""

from __future__ import annotations

from typing import Any

from zaq_timm.zoo.exporting import lines
from zaq_timm.zoo.progress import row_line
from zaq_timm.zoo.report import terminal_table

ROW: dict[str, Any] = {
    "key": "net",
    "status": "done",
    "host": "pt2e",
    "layers": 3,
    "quantized": 3,
    "mac_bits": 4.0,
    "stored_bits": 5.0,
    "activation_bits": 8,
    "size_bytes": 1000,
    "float_bytes": 4000,
    "agreement": 93.75,
    "agreement_images": 32,
    "divergence": 0.1,
}
EVAL = {"float_top1": 90.0, "top1": 89.5, "eval_agreement": 97.0, "eval_images": 400}


def test_on_the_line_of_a_model() -> None:
    assert "agreement 93.8 % of 32 synthetic images" in row_line(ROW)
    assert "top-1 89.50 % of 400 images (float 90.00 %)" in row_line(ROW | EVAL)
    before = {name: value for name, value in ROW.items() if name != "agreement_images"}
    assert row_line(before).endswith("agreement 93.8 %")  # a row of an earlier version


def test_below_the_table() -> None:
    caption = str(terminal_table([ROW]).caption)
    words = "agreement and divergence on 32 synthetic images (one is 3.1 points), that nothing was"
    assert words in caption
    caption = str(terminal_table([ROW, ROW | {"agreement_images": 16}]).caption)
    assert "on 16 to 32 synthetic images, that" in caption
    caption = str(terminal_table([ROW | EVAL]).caption)
    assert "agreement on 400 images (one is 0.25 points), divergence on 32 synth" in caption


def test_on_the_line_of_a_file() -> None:
    file = {"file": "model.pte", "bytes": 10, "agreement": 96.9, "agreement_images": 32}
    (text,) = lines([{"key": "net", "files": [file | EVAL]}])
    assert "agrees with the float model on 96.9 % of 32 synthetic images" in text
    assert "97.0 % of your 400 images (top-1 89.50 %)" in text
