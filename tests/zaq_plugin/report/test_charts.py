"""What all charts share: equal text for equal data, nothing outside, colours told apart."""

import itertools
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from zaq_plugin.pwlq import PWLQSpec, quantize
from zaq_plugin.report import ResultRow, plots
from zaq_plugin.report.charts import SERIES, Chart
from zaq_plugin.report.scales import Scale, log_ticks, ticks

W = torch.linspace(-1, 1, 64).pow(3).reshape(2, 32)
ROWS = [ResultRow("<&\"' $a_b$", 4, 5, 8, 8, top1=50.0)]
DRAWN = {
    "histogram": lambda: plots.weight_histogram(W, quantize(W, PWLQSpec()), name='<b> & "c"'),
    "error": lambda: plots.error_over_breakpoint(W, PWLQSpec()),
    "accuracy": lambda: plots.accuracy_over_bits(ROWS),
    "theory": plots.optimal_breakpoint_figure,
    "discrepancies": lambda: plots.discrepancy_curves([0, 1], {"D_o": [1, 2]}),
    "layers": lambda: plots.layer_weight_lines([0, 1], {"a": [1, 2]}),
}


@pytest.mark.parametrize("name", DRAWN)
def test_svg_is_the_same_each_time(name):
    assert DRAWN[name]() == DRAWN[name]()


@pytest.mark.parametrize("name", DRAWN)
def test_svg_parses_and_refers_to_nothing_outside(name):
    svg = DRAWN[name]()
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("role") == "img"
    assert root.get("aria-label")
    for element in root.iter():
        for key, value in element.attrib.items():
            if key.endswith("href"):
                assert value.startswith("#")
    addresses = set(re.findall(r"https?://[^\"'\s<]+", svg))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not re.search(r"\d{4}-\d\d-\d\d", svg)


_FRESH = """
import json, sys
from zaq_plugin import report
from zaq_plugin.report import plots
out = {"loaded": sorted({"matplotlib", "PIL", "rich"} & set(sys.modules))}
out["svg"] = plots.optimal_breakpoint_figure()
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def fresh():
    """What a new process says: what an import loads, and a plot."""
    run = subprocess.run([sys.executable, "-c", _FRESH], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def test_plots_need_neither_matplotlib_nor_rich(fresh):
    assert fresh["loaded"] == []


def test_equal_in_another_process(fresh):
    assert fresh["svg"] == plots.optimal_breakpoint_figure()


def test_label_is_escaped():
    chart = Chart("a < b & \"c\" 'd'")
    chart.panel(Scale(0, 1), Scale(0, 1))
    root = ElementTree.fromstring(chart.svg())
    assert root.get("aria-label") == "a < b & \"c\" 'd'"


def test_ticks_are_round_and_within_the_range():
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(-0.31, 0.27) == [-0.2, 0, 0.2]
    assert log_ticks(1, 100) == [1, 2, 5, 10, 20, 50, 100]
    assert log_ticks(1e-9, 3) == pytest.approx([1e-9, 1e-7, 1e-5, 1e-3, 1e-1])
    for low, high in ((1.2e6, 1.9e6), (3.0, 4.0), (7e4, 2e7)):
        values = log_ticks(low, high)
        assert len(values) >= 3
        assert all(low <= v <= high for v in values)


def test_names_at_the_ends_of_lines_do_not_cover_each_other(read_plot):
    chart = Chart("", 200)
    panel = chart.panel(Scale(0, 1), Scale(0, 1), right=100)
    panel.axes()
    panel.name_ends([(f"line {i}", SERIES[i], 1.0, 0.5 + i / 1000) for i in range(5)])
    named = [e for e in read_plot(chart.svg()).root.iter() if "line" in (e.text or "")]
    heights = sorted(float(str(e.get("y"))) for e in named)
    assert len(heights) == 5
    assert all(b - a >= 12 for a, b in itertools.pairwise(heights))
    assert panel.top <= heights[0] - 4
    assert heights[-1] - 4 <= panel.bottom


# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
_DEFICIENCIES = {
    "protan": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deutan": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritan": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def _lab(color, matrix):
    rgb = torch.tensor([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)], dtype=torch.float64)
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = (torch.tensor(matrix, dtype=torch.float64) @ linear).clamp(0, 1)
    to_xyz = torch.tensor(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]],
        dtype=torch.float64,
    )
    x = to_xyz @ seen / torch.tensor([0.9505, 1.0, 1.089], dtype=torch.float64)
    f = torch.where(x > 216 / 24389, x.pow(1 / 3), (24389 / 27 * x + 16) / 116)
    return torch.stack([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("deficiency", _DEFICIENCIES)
def test_neighbouring_series_stay_apart_under_colour_blindness(deficiency):
    matrix = _DEFICIENCIES[deficiency]
    for one, other in itertools.combinations(SERIES[:3], 2):
        distance = (_lab(one, matrix) - _lab(other, matrix)).norm()
        assert distance > 10, f"{one} and {other} look alike ({distance:.1f})"
