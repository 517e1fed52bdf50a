"""Files of rows, one JSON object a line: a row is added the moment it is there."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

RESULTS = Path(__file__).parent / "results"
"""Where the rows and pages are that are published."""
K = TypeVar("K")
V = TypeVar("V")


def command_line(text: str | None, needs: str | None = None) -> argparse.ArgumentParser:
    """A parser whose ``--help`` shows a module's docstring as it is written.

    Args:
        text: What is asked, with an example.
        needs: What it needs and how long it takes, shown behind the options.
    """
    spec = sys.modules["__main__"].__spec__
    name = "" if spec is None else spec.name.removesuffix(".__main__")
    return argparse.ArgumentParser(
        f"python -m {name}" if name.startswith("benchmarks.") else None,
        description=text,
        epilog=needs,
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


def read_records(path: Path, key: type[K], value: type[V]) -> dict[K, V]:
    """Rows that `append_record` wrote: a dataclass of what was asked to one of what came of it."""
    done: dict[K, V] = {}
    names = [f.name for f in fields(key)]  # type: ignore[arg-type]
    for entry in read_rows(path):
        asked = key(**{n: entry.pop(n) for n in names if n in entry})
        done[asked] = value(**entry)
    return done


def append_record(path: Path, key: object, value: object) -> None:
    """Add a row of two dataclasses: what was asked, and what came of it."""
    append_row(path, {**asdict(key), **asdict(value)})  # type: ignore[call-overload]
