"""The converted model as a file: ONNX, or what torch.export saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zaq_timm.zoo.errors import LeftOut


def export_model(kind: str, model: nn.Module, example: Tensor, folder: Path) -> dict[str, Any]:
    """Writes the model into a folder.

    Args:
        kind: ``onnx`` or ``pt2``.
        model: converted.
        example: images to trace it with.
        folder: where to.

    Returns:
        The file's name and bytes, and how far it is from the model, where that was checked.

    Raises:
        LeftOut: what the format needs is not installed.
    """
    return EXPORTERS[kind](model, example, folder)


def _to_pt2(model: nn.Module, example: Tensor, folder: Path) -> dict[str, Any]:
    path = folder / "model.pt2"
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    try:
        program = torch.export.export(model, (example,), dynamic_shapes=shapes)
    except Exception:  # a model that takes one batch size
        program = torch.export.export(model, (example,))
    torch.export.save(program, path)
    return {"file": path.name, "bytes": path.stat().st_size}


def _to_onnx(model: nn.Module, example: Tensor, folder: Path) -> dict[str, Any]:
    try:
        import zaq_onnx
    except ImportError as error:
        raise LeftOut(f"ONNX export: {error}") from error
    path = folder / "model.onnx"
    zaq_onnx.export(model, (example,), path)
    return {"file": path.name, "bytes": path.stat().st_size}


EXPORTERS = {"pt2": _to_pt2, "onnx": _to_onnx}
"""Kind to function; a new kind is a function and a line here (and a choice in the settings)."""
