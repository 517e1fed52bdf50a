"""The two tools: how each writes a float file, its own int8 file, and ours; what runs an image."""

from __future__ import annotations

import types
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

Run = Callable[[Tensor], Tensor]


class ExecuTorch:
    """XNNPACK's delegate."""

    @staticmethod
    def versions() -> str:
        """Of the tool and torch."""
        return f"executorch {metadata.version('executorch')}, torch {torch.__version__}"

    @staticmethod
    def _run(path: Path) -> Run:
        from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

        from zaq_executorch.running import runner

        _unsafe_reset_threadpool(1)
        run = runner(path)
        return lambda x: run((x,))[0]

    @classmethod
    def write_float(cls, model: nn.Module, example: tuple[Any, ...], path: Path) -> Run:
        """Float weights in the same delegate."""
        from zaq_executorch.lowering import lower

        path.write_bytes(lower(torch.export.export(model, example).module(), example, None))
        return cls._run(path)

    @classmethod
    def write_stock(
        cls, model: nn.Module, example: tuple[Any, ...], batches: list[Tensor], path: Path
    ) -> Run:
        """``XNNPACKQuantizer``, per channel, as its documentation has it."""
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )

        from zaq_executorch.lowering import lower

        quantizer = XNNPACKQuantizer().set_global(
            get_symmetric_quantization_config(is_per_channel=True)
        )
        prepared = prepare_pt2e(torch.export.export(model, example).module(), quantizer)
        with torch.no_grad():
            for batch in batches:
                prepared(batch)
        path.write_bytes(lower(convert_pt2e(prepared), example, None))
        return cls._run(path)

    @classmethod
    def write_ours(
        cls,
        model: nn.Module,
        example: tuple[Any, ...],
        images: Tensor,
        path: Path,
        method: str,
        levels: str,
        stored: int,
    ) -> tuple[Run, Any]:
        """Through the host, verified."""
        import zaq_executorch

        return _ours(zaq_executorch, cls._run, model, example, images, path, method, levels, stored)


def _ours(
    tool: types.ModuleType,
    run: Callable[[Path], Run],
    model: nn.Module,
    example: tuple[Any, ...],
    images: Tensor,
    path: Path,
    method: str,
    levels: str,
    stored: int,
) -> tuple[Run, Any]:
    options: dict[str, Any] = {"method": method, "stored_bits": stored, "levels": levels}
    made = tool.export(model, example, path, calibration=[images], **options)
    return run(path), tool.verify(path, made.model, images[:8])


TOOLS: dict[str, Any] = {"executorch": ExecuTorch}
