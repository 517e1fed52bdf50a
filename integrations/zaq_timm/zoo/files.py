"""Results of a run, written whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zaq_timm.zoo.errors import RunError
from zaq_timm.zoo.light import core_file


def write_whole(path: Path, data: bytes | str) -> Path:
    """`zaq_plugin.files.write_whole`, for which torch is not loaded."""
    written: Path = core_file("files").write_whole(path, data)
    return written


def write_json(path: Path, value: Any) -> Path:
    """`write_whole` of a value as JSON; non-finite numbers are refused."""
    return write_whole(
        path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    )


def cannot_write(path: Path, error: OSError) -> RunError:
    """What to say when a result cannot be written."""
    return RunError(
        f"cannot write {path}: {error.strerror or error}. What is done is kept; make room or give "
        "another --out, and run the same command to go on."
    )
