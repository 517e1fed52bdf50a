"""The arithmetic of the hosts' benchmark; its runs are the benchmark itself."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "hosts" / "speed.py"


@pytest.fixture(scope="module")
def hosts():
    specification = importlib.util.spec_from_file_location("hosts_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules["hosts_benchmark"] = module
    specification.loader.exec_module(module)
    return module


def test_a_row_shows_milliseconds_ratio_and_limit(hosts):
    row = hosts.Row("step", pwlq=0.011, stock=0.010, floating=0.002, limit=1.25)
    assert row.cells() == ["step", "11.0", "10.0", "1.10 (limit 1.25)", "2.0"]
    text = hosts.markdown([row], "settings.")
    assert "| step | 11.0 | 10.0 | 1.10 (limit 1.25) | 2.0 |" in text
    assert f"| 2.0 | {hosts.processor()} |" in text
    assert "settings." in text
