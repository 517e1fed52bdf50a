"""Figure 1 (right) of the paper, read back from the SVG and computed again from nothing."""

import math

import numpy as np
import pytest

from zaq_plugin.report.plots import optimal_breakpoint_figure


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
