"""Checkpoints of a run: written at once or not at all, read without unpickling code."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch

from zaq_plugin.files import write_whole

NAME = "checkpoint.pt"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> Path:
    """Write a state (tensors, numbers, strings, lists, dicts) to ``folder/checkpoint.pt``.

    A kill leaves the checkpoint before it.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return write_whole(folder / NAME, buffer.getvalue())


def load_checkpoint(folder: Path, config: str, device: torch.device | str) -> dict[str, Any] | None:
    """Read a folder's checkpoint, or None if there is none.

    Raises:
        ValueError: if it was written with another config, or is no checkpoint.
    """
    path = folder / NAME
    if not path.exists():
        return None
    state = torch.load(path, map_location=device, weights_only=True)
    if not isinstance(state, dict) or "config" not in state:
        raise ValueError(f"{path} is no checkpoint of zero-shot fine-tuning; delete it or move it.")
    if json.loads(state["config"]) != json.loads(config):
        changed = _differences(state["config"], config)
        raise ValueError(
            f"{path} belongs to a run with other settings ({changed}); resume with those, or give "
            "another checkpoint folder."
        )
    return state


def _differences(saved: str, present: str) -> str:
    old, new = json.loads(saved), json.loads(present)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name}: {old.get(name)!r}, now {new.get(name)!r}" for name in names)
