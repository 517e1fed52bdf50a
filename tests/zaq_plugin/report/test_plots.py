"""Accuracy over stored bits, the theory, training: read back from the SVG, computed again."""

import math
import re

import numpy as np
import pytest

from zaq_plugin.report import ResultRow, split_curve, training_figures
from zaq_plugin.report.plots import (
    accuracy_over_bits,
    discrepancy_curves,
    layer_weight_lines,
    optimal_breakpoint_figure,
)


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
    """The name of the marker's outline."""
    block = svg[svg.index(f'id="{gid}"') :]
    return re.search(r'<use href="(#[^"]+)"', block)[1]


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="at least one quantized row with a top1; got 1 rows"):
        accuracy_over_bits(ROWS[:1])


def mass_below(p: np.ndarray, density: str) -> np.ndarray:
    """Share of |r| < p, unit variance."""
    if density == "gaussian":
        return np.vectorize(math.erf)(p / math.sqrt(2))
    return 1 - np.exp(-math.sqrt(2) * p)


def best_fraction(m: float, density: str) -> float:
    """argmin over p of step^2 times mass, center and tail, on a fine grid up to m/2."""
    p = np.linspace(0, m / 2, 20001)
    inside = mass_below(p, density)
    error = p**2 * inside + (m - p) ** 2 * (1 - inside)
    return float(p[error.argmin()] / m)


@pytest.mark.parametrize("density", ["gaussian", "laplacian"])
def test_solid_line_is_the_exact_minimiser(read_plot, density):
    line = read_plot(optimal_breakpoint_figure()).line(f"{density}-exact")
    assert line[0, 0] == pytest.approx(1.5, abs=0.02)
    assert line[-1, 0] == pytest.approx(10.0, abs=0.02)
    for m, fraction in line[::10]:
        assert fraction == pytest.approx(best_fraction(m, density), abs=1.5e-3)


@pytest.mark.parametrize("density", ["gaussian", "laplacian"])
def test_dashed_line_is_the_closed_form_where_it_was_fitted(read_plot, density):
    line = read_plot(optimal_breakpoint_figure()).line(f"{density}-closed")
    assert line[0, 0] == pytest.approx(3.0, abs=0.02)
    assert line[-1, 0] == pytest.approx(10.0, abs=0.02)
    for m, fraction in line[::10]:
        p = math.log(0.8614 * m + 0.6079) if density == "gaussian" else 0.8030 * m**0.5 - 0.3167
        assert fraction == pytest.approx(p / m, abs=1e-3)


def test_an_empty_interval_is_refused():
    with pytest.raises(ValueError, match="expected 0 < low < high, got low=4 and high=3"):
        optimal_breakpoint_figure(4, 3)


STEPS = list(range(0, 100, 10))
D_O = [2.0 - s / 100 for s in STEPS]
D_F = [10.0 - s / 20 for s in STEPS]


def test_each_discrepancy_has_its_panel(read_plot):
    svg = discrepancy_curves(STEPS, {"D_o": D_O, "D_f": D_F}, best_step=70)
    last = read_plot(svg, 2)
    np.testing.assert_allclose(last.line("curve-1")[:, 0], STEPS, atol=0.2)
    np.testing.assert_allclose(last.line("curve-1")[:, 1], D_F, atol=0.02)
    assert "kept: step 70" in last.texts()


def test_one_discrepancy(read_plot):
    line = read_plot(discrepancy_curves(STEPS, {"agreement": D_O})).line("curve-0")
    np.testing.assert_allclose(line, np.stack([STEPS, D_O], 1), atol=0.2)
    np.testing.assert_allclose(line[:, 1], D_O, atol=0.005)


@pytest.mark.parametrize("base", [10.0, 1.1])
def test_a_wide_range_gets_a_logarithmic_axis_and_a_narrow_one_does_not(base):
    svg = discrepancy_curves(STEPS, {"D_f": [base**-i for i in range(10)]})
    block = svg[svg.index('id="curve-0"') :]
    path = block[block.index(' d="') : block.index('" style')]
    heights = np.array([float(y) for y in re.findall(r"[ML] \S+ (\S+)", path)])
    assert np.allclose(np.diff(heights), np.diff(heights)[0], rtol=1e-3) == (base == 10.0)


def test_layer_weights(read_plot):
    weights = {f"layer{i}": [(i + 1) / 10 + s / 1000 for s in STEPS] for i in range(8)}
    plot = read_plot(layer_weight_lines(STEPS, weights))
    for index, values in enumerate(weights.values()):
        np.testing.assert_allclose(plot.line(f"layer-{index}")[:, 1], values, atol=2e-3)
    assert set(weights) <= set(plot.texts())


@pytest.mark.parametrize("draw", [discrepancy_curves, layer_weight_lines])
def test_curves_must_fit_the_steps(draw):
    with pytest.raises(ValueError, match="curve 'a' has 1 values for 10 steps"):
        draw(STEPS, {"a": [1.0]})
    with pytest.raises(ValueError, match="needs at least one curve and one step"):
        draw(STEPS, {})


@pytest.mark.parametrize("count", [1, 2])
def test_one_step_is_a_dot_and_several_are_a_line(count):
    """A line of one point draws nothing."""
    steps = [20, 30][:count]
    for svg in (
        discrepancy_curves(steps, {"D_o": [0.5, 0.4][:count]}),
        layer_weight_lines(steps, {"layer": [0.5, 0.4][:count]}),
    ):
        start = svg.index('id="curve-0"' if 'id="curve-0"' in svg else 'id="layer-0"')
        drawn = svg[start : svg.index("</g>", svg.index("<path", start))]
        assert ("<use" in drawn) == (count == 1)


CURVE = [
    {"step": 5, "KL": 0.5, "λ a": 0.4, "λ b": 0.6, "once": 1.0},
    {"step": 10, "KL": 0.25, "λ a": 0.3, "λ b": 0.7},
]


def test_terms_and_layers_are_told_apart() -> None:
    steps, terms, layers = split_curve(CURVE)
    assert steps == [5, 10]
    assert terms == {"KL": [0.5, 0.25]}
    assert layers == {"a": [0.4, 0.3], "b": [0.6, 0.7]}
    assert split_curve([]) == ([], {}, {})


def test_figures() -> None:
    assert [f.title for f in training_figures(CURVE)] == [
        "Teacher and student",
        "Where they differ",
    ]
    assert [f.title for f in training_figures([{"step": 1, "KL": 0.5}])] == ["Teacher and student"]
    assert training_figures([]) == []
