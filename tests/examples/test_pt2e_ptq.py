import re
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "pt2e_ptq.py"


def test_it_runs_and_keeps_the_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(SCRIPT), run_name="__main__")
    printed = capsys.readouterr().out
    float32, *others = map(float, re.findall(r": (\d+\.\d\d) %", printed))
    assert len(others) == 3
    assert min(others) >= float32 - 1
    assert "onednn.qconv_pointwise" in printed


def test_it_is_short() -> None:
    assert len(SCRIPT.read_text().splitlines()) < 60
