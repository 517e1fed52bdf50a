"""Accuracy over stored bits, read back from the SVG."""

import numpy as np
import pytest

from zaq_plugin.report import ResultRow
from zaq_plugin.report.plots import accuracy_over_bits


def row(method, mac, stored, act, top1, **more):
    return ResultRow(method, mac, stored, act, act, top1=top1, **more)


ROWS = [
    row("FP32", 32, 32, 32, 95.0),
    row("uniform", 8, 8, 8, 94.5),
    row("uniform", 4, 4, 8, 80.25),
    row("PWLQ", 3, 4, 8, 85.0, seeds=3, spread=1.5),
    row("PWLQ", 4, 5, 8, 93.0, seeds=3, spread=0.5),
    row("PWLQ", 4, 5, 4, 90.0, seeds=3, spread=0.5),
    row("failed", 2, 2, 8, None),
]


def test_points_are_the_rows_at_their_stored_bits(read_plot):
    plot = read_plot(accuracy_over_bits(ROWS, title="net"))
    np.testing.assert_allclose(plot.line("series-0"), [[4, 80.25], [8, 94.5]], atol=0.05)
    np.testing.assert_allclose(plot.line("series-1"), [[4, 85.0], [5, 93.0]], atol=0.05)
    np.testing.assert_allclose(plot.line("series-2"), [[5, 90.0]], atol=0.05)
    texts = plot.texts()
    assert {"uniform", "PWLQ, A8", "PWLQ, A4", "FP32: 95.00 %", "net"} <= set(texts)
    assert "stored bits per weight" in texts
    assert not any("failed" in t for t in texts)


def test_methods_differ_in_colour_and_marker_and_widths_in_dash():
    svg = accuracy_over_bits([*ROWS, row("PWLQ", 3, 4, 4, 70.0, seeds=3, spread=0.5)])
    styles = [_style(svg, f"series-{i}") for i in range(3)]
    assert styles[0]["stroke"] != styles[1]["stroke"]
    assert styles[1]["stroke"] == styles[2]["stroke"]
    assert "stroke-dasharray" not in styles[1]
    assert "stroke-dasharray" in styles[2]
    assert _marker(svg, "series-0") != _marker(svg, "series-1")


def _style(svg, gid):
    """The line's style, as a dict."""
    block = svg[svg.index(f'id="{gid}"') :]
    text = block[block.index('style="') + 7 :]
    return dict(p.strip().split(": ", 1) for p in text[: text.index('"')].split(";") if p.strip())


def _marker(svg, gid):
    """The marker's outline."""
    block = svg[svg.index(f'id="{gid}"') :]
    outline = block[block.index("<defs>") : block.index("</defs>")]
    return outline[outline.index(' d="') : outline.index("style=")]


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="at least one quantized row with a top1; got 1 rows"):
        accuracy_over_bits(ROWS[:1])
