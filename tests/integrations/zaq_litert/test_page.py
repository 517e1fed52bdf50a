"""The code on the page about LiteRT runs as it stands."""

from pathlib import Path

import pytest
from device_tools import run_page


@pytest.mark.slow
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page("litert.md")
    assert (tmp_path / "model.tflite").stat().st_size > 2_000
