"""Files of rows, one JSON object a line: a row is added the moment it is there."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
"""Where the rows and pages are that are published."""


def command_line(text: str | None) -> argparse.ArgumentParser:
    """A parser whose ``--help`` shows a module's docstring as it is written."""
    spec = sys.modules["__main__"].__spec__
    name = "" if spec is None else spec.name.removesuffix(".__main__")
    return argparse.ArgumentParser(
        f"python -m {name}" if name.startswith("benchmarks.") else None,
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of earlier runs; a line that a stopped run left half-written is dropped."""
    rows = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return rows


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add a row on a line of its own, even after a line that was left half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        broken = False
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            broken = file.read() != b"\n"
        file.write((("\n" if broken else "") + json.dumps(row) + "\n").encode())
