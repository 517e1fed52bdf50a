"""The FX example runs, and what it prints is right."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "fx_ptq.py"


@pytest.mark.slow
def test_the_example_quantizes_every_layer_without_losing_accuracy() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=True)
    assert "10 of 10 layers quantized" in done.stdout
    assert done.stdout.count("int8 conv2d") == 9
    floating, kernels, narrow = map(float, re.findall(r"([\d.]+) %(?=,|\n)", done.stdout)[-3:])
    assert floating > 99
    assert kernels > floating - 0.5
    assert narrow > floating - 1.5
    assert done.stderr.count("Warning") + done.stderr.count("HostNote") <= 1
