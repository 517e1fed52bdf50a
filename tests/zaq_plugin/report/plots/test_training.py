"""Training curves, read back from the SVG."""

import re

import numpy as np
import pytest

from zaq_plugin.report.plots import discrepancy_curves, layer_weight_lines

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
    path = block[block.index(' d="') : block.index('" clip-path')]
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
