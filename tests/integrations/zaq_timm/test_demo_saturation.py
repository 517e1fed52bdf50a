"""Where int8 kernels saturate, the demo's converted rows say so, and what unguarded levels give."""

from __future__ import annotations

from pathlib import Path

import pytest

from zaq_timm import demo
from zaq_timm.hosts import simulated


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> demo.DemoRun:
    monkeypatch.setitem(demo.CONVERTED, "fx", simulated)  # what is converted is not the question
    monkeypatch.setattr(demo, "CONVERTED_WIDTHS", ((4, 8),))
    run = demo.DemoRun(tmp_path)
    demo.load(run)
    run.batches = run.batches[:1]
    return run


@pytest.mark.slow
def test_a_footnote_and_a_row_more(run: demo.DemoRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "warning", lambda runtime: f"int8 kernels of {runtime} saturate")
    demo.convert_all(run)
    assert run.notes == [
        "int8 kernels of torch saturate. The demo's PWLQ levels never do (overflow='pairs')."
    ]
    guarded, unguarded = run.manifest.results[1:]
    assert guarded.method == "PWLQ, converted (fx)"
    assert "no pair of these levels does" in guarded.protocol["int8 kernels"]
    assert unguarded.method == "PWLQ, converted (fx), unguarded"
    assert "overflow='allowed'" in unguarded.protocol["levels"]
    spec = run.manifest.specs["PWLQ, converted (fx), unguarded, W4A8"]["weights"]
    assert '"overflow": "allowed"' in spec


def test_nothing_is_said_where_they_are_exact(
    run: demo.DemoRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "warning", lambda runtime: None)
    demo.convert_all(run)
    (row,) = run.manifest.results[1:]
    assert (row.method, run.notes) == ("PWLQ, converted (fx)", [])
    assert "int8 kernels" not in row.protocol
