"""Results of a run, written whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zaq_plugin.files import write_whole
from zaq_timm.zoo.errors import RunError


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
