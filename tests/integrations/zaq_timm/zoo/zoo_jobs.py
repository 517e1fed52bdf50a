"""A small job done in this process, for tests of what its row says."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zaq_timm.zoo.job import run_job
from zaq_timm.zoo.references import Reference
from zaq_timm.zoo.settings import Settings

SMALL: dict[str, Any] = {
    "input_size": "3x16x16",
    "batch": 8,
    "calibration_images": 8,
    "test_images": 8,
    "distill_steps": 2,
}


def do(folder: Path, name: str = "zoo_own_models:tiny", **changes: Any) -> dict[str, Any]:
    """The row of a model under `SMALL` settings and changes; it is valid JSON."""
    settings = Settings(**{**SMALL, **changes})
    reference = Reference(name).to_dict()
    payload = {"reference": reference, "settings": asdict(settings), "batch": settings.batch}
    row = run_job(json.loads(json.dumps(payload)), folder, lambda *_: None)
    json.dumps(row, allow_nan=False)
    return row
