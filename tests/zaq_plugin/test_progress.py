from __future__ import annotations

import io

from rich.console import Console

from zaq_plugin.progress import RunProgress


def test_progress_is_one_line_per_stage_when_not_on_a_terminal() -> None:
    out = io.StringIO()
    with RunProgress(console=Console(file=out, width=200)) as progress:
        for step in range(1, 6):
            progress.show("train", step, 5, {"D_o": 1 / step, "agreement": 0.5})
    lines = out.getvalue().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("train: 5/5 in 0 s  D_o 0.2  agreement 0.5")


def test_progress_on_a_terminal_is_a_bar() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    with RunProgress(console=console) as progress:
        progress.show("train", 1, 2, {"KL": 0.25})
        progress.show("train", 2, 2, {"KL": 0.125})
    assert "KL 0.125" in out.getvalue()
    assert "2/2" in out.getvalue()
