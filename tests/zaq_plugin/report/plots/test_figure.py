"""What all plots share: equal text for equal data, no outside, no matplotlib until needed."""

import itertools
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
import pytest
import torch

from zaq_plugin.pwlq import PWLQSpec, quantize
from zaq_plugin.report import ResultRow, plots
from zaq_plugin.report.plots._figure import SERIES, figure, style, to_svg

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
def test_svg_is_the_same_each_time_and_whatever_the_users_settings(name):
    first = DRAWN[name]()
    before = dict(mpl.rcParams)
    with mpl.rc_context({"lines.linewidth": 9, "font.size": 30, "svg.hashsalt": "x"}):
        inside = dict(mpl.rcParams)
        assert DRAWN[name]() == first
        assert dict(mpl.rcParams) == inside
    assert dict(mpl.rcParams) == before


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
sys.modules["matplotlib"] = None
out["page"] = report.render_page(report.Manifest())
try:
    plots.optimal_breakpoint_figure()
except ImportError as error:
    out["error"] = str(error)
del sys.modules["matplotlib"]
out["svg"] = plots.optimal_breakpoint_figure()
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def fresh():
    """What a new process says: what an import loads, what a missing matplotlib does, a plot."""
    run = subprocess.run([sys.executable, "-c", _FRESH], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def test_importing_the_report_does_not_import_matplotlib_or_rich(fresh):
    assert fresh["loaded"] == []


def test_missing_matplotlib_says_what_to_install_and_the_page_works(fresh):
    assert "plots need matplotlib, which is not installed" in fresh["error"]
    assert "pip install 'zaq-plugin[report]'" in fresh["error"]
    assert "<html" in fresh["page"]


def test_equal_in_another_process(fresh):
    assert fresh["svg"] == plots.optimal_breakpoint_figure()


def test_label_is_escaped():
    with style():
        svg = to_svg(figure(), "a < b & \"c\" 'd'")
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == "a < b & \"c\" 'd'"


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
