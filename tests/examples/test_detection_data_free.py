"""The detection example runs, quantizes both networks whole, and stays near the float models."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "detection_data_free.py"


@pytest.mark.slow
def test_both_detectors_are_quantized_whole_and_run() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=True)
    for name in ("SSDlite, MobileNetV3", "SSD, MobileNetV2"):
        assert f"{name}:" in done.stdout
    counts = re.findall(r"(\d+) of (\d+) layers quantized", done.stdout)
    assert len(counts) == 2
    assert all(some == every and int(every) > 50 for some, every in counts)
    errors = [float(e) for e in re.findall(r"(?:bbox_regression|cls_logits) ([\d.]+)", done.stdout)]
    assert len(errors) == 8
    assert min(errors) > 0
    assert max(errors) < 0.6
    assert done.stdout.count("the quantized detector runs") == 2
