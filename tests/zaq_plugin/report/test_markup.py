"""Figures that a page takes, and the colours that it prints them in."""

import re
from pathlib import Path

import pytest

import zaq_plugin.report.page as page_module
from zaq_plugin.report import Figure

SVG = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">{}</svg>'


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("plot.png", "expected SVG text or a data:image/... URI, got 'plot.png'"),
        ("https://example.org/a.svg", "takes no paths or addresses"),
        ('data:image/png;base64,"><script>', "the data URI is not base64"),
        ("<svg><g></svg>", "the SVG does not parse"),
        (SVG.format("<!DOCTYPE x>"), "with declarations"),
        (SVG.format("<script>1</script>"), "holds a <script>"),
        (SVG.format("<foreignObject/>"), "holds a <foreignobject>"),
        (SVG.format('<g onclick="1"/>'), "holds a handler, onclick"),
        (SVG.format('<use xlink:href="//e.org/x"/>'), "refers outside, to '//e.org/x'"),
        (SVG.format('<a href="javascript:1"/>'), "refers outside, to 'javascript:1'"),
        (SVG.format("<style>@import 'x'</style>"), "style refers outside"),
        (SVG.format('<g style="fill: url(http://e.org)"/>'), "style refers outside"),
    ],
)
def test_a_figure_that_is_not_self_contained_is_refused(body, message):
    with pytest.raises(ValueError, match=f"Figure 'pic'.*{re.escape(message)}"):
        Figure("pic", body)


def _themes() -> dict[str, dict[str, str]]:
    css = (Path(page_module.__file__).parent / "page.css").read_text()
    blocks = re.findall(r":root \{([^}]*)\}", css)
    themes = [dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{3,6});", b)) for b in blocks]
    return dict(zip(("light", "dark", "print"), themes, strict=True))


def _luminance(color: str) -> float:
    digits = color[1:] if len(color) == 7 else "".join(2 * d for d in color[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark", "print"])
def test_text_has_the_contrast_that_wcag_asks_for(theme):
    colors = _themes()[theme]
    grounds = ("--bg", "--card", "--soft")
    pairs = [(ink, ground) for ink in ("--ink", "--muted") for ground in grounds]
    pairs += [("--accent", "--card"), ("--warn", "--warn-soft"), ("--ink", "--accent-soft")]
    pairs += [("--fig-ink", "--card"), ("--muted", "--accent-soft")]
    for ink, ground in pairs:
        bright, dim = sorted((_luminance(colors[ink]), _luminance(colors[ground])), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, f"{ink} on {ground}"
    for name, color in colors.items():
        if name in ("--fig-blue", "--fig-vermilion", "--fig-green"):
            bright, dim = sorted((_luminance(color), _luminance(colors["--card"])), reverse=True)
            assert (bright + 0.05) / (dim + 0.05) >= 3, f"{name} on the card"
