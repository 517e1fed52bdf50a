"""The segmentation example runs, quantizes every layer, and stays near the float model."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "segmentation_data_free.py"


@pytest.mark.slow
def test_every_layer_is_quantized_and_most_pixels_agree() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=True)
    match = re.search(r"(\d+) of (\d+) layers quantized", done.stdout)
    assert match is not None
    assert match[1] == match[2]
    assert int(match[1]) > 50  # MobileNetV2 has 52 convolutions
    pattern = r"(data-free|calibrated|fine-tuned): relative error ([\d.]+), ([\d.]+) %"
    lines = re.findall(pattern, done.stdout)
    assert [name for name, _, _ in lines] == ["data-free", "calibrated", "fine-tuned"]
    for _, error, share in lines:
        assert 0 < float(error) < 0.6
        assert float(share) > 60  # 21 classes: chance is 5
