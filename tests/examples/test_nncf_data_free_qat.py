import re
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "nncf_data_free_qat.py"


@pytest.mark.slow
def test_it_runs_and_keeps_the_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(SCRIPT), run_name="__main__")
    printed = capsys.readouterr().out
    float32, before, after, openvino = map(float, re.findall(r": (\d+\.\d\d) %", printed))
    assert after >= before - 0.5
    assert after >= float32 - 2
    assert openvino == pytest.approx(after, abs=0.5)
    assert "10 of 10 layers quantized" in printed
    assert "3 MAC bits and 4 stored bits" in printed


def test_it_is_short() -> None:
    assert len(SCRIPT.read_text().splitlines()) < 60
