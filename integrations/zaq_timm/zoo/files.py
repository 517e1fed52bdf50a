"""Files that are whole or not there: written beside, flushed to disk, renamed in one step."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from zaq_timm.zoo.errors import RunError


def write_whole(path: Path, data: bytes | str) -> Path:
    """Writes a file so that readers, and a crash at any moment, see the old one or the new one.

    Raises:
        OSError: it cannot be written; the old file is as it was.
    """
    held = data.encode() if isinstance(data, str) else data
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(held)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


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
