"""The two tools: how each writes a float file, its own int8 file, and ours; what runs an image."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Run = Callable[[Tensor], Tensor]


class Tool:
    """An integration for a device.

    Args:
        name: Of its package, without ``zaq_``.
        distribution: As pip knows the tool.
    """

    def __init__(self, name: str, distribution: str) -> None:
        self.name, self.distribution = name, distribution

    def versions(self) -> str:
        """Of the tool and torch."""
        version = metadata.version(self.distribution)
        return f"{self.distribution} {version}, torch {torch.__version__}"

    def _part(self, name: str) -> Any:
        return importlib.import_module(f"zaq_{self.name}{name}")

    def run(self, path: Path) -> Run:
        """What runs an image through a file, in one thread."""
        running = self._part(".reading")
        running.one_thread()
        run = running.runner(path)
        return lambda x: run((x,))[0]

    def write_float(self, model: nn.Module, example: tuple[Any, ...], path: Path) -> Run:
        """Float weights."""
        self._part(".lowering").write_float(model, example, path)
        return self.run(path)

    def write_stock(
        self, model: nn.Module, example: tuple[Any, ...], batches: list[Tensor], path: Path
    ) -> Run:
        """The tool's own quantizer, as its documentation has it."""
        self._part(".lowering").write_stock(model, example, batches, path)
        return self.run(path)

    def write_ours(
        self,
        model: nn.Module,
        example: tuple[Any, ...],
        images: Tensor,
        path: Path,
        method: str,
        levels: str,
        stored: int,
    ) -> tuple[Run, Any]:
        """Through our host, verified."""
        tool, options = self._part(""), {"method": method, "stored_bits": stored, "levels": levels}
        exported = tool.export(model, example, path, synthetic=images, **options)
        return self.run(path), tool.verify(path, exported.model, images[:8])


TOOLS = {"executorch": Tool("executorch", "executorch"), "litert": Tool("litert", "litert-torch")}
