"""What a network's own file is compared with: LiteRT's float file, and its stock int8."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from zaq_litert._compat import stock_quantizer
from zaq_litert.interface import with_float_interface
from zaq_litert.lowering import lower

Path_ = str | os.PathLike[str]


def write_float(model: nn.Module, example_inputs: tuple[Any, ...], path: Path_) -> None:
    """The float model.

    Raises:
        ValueError: LiteRT cannot follow it.
    """
    Path(path).write_bytes(lower(model, example_inputs, quantized=False))


def write_stock(
    model: nn.Module, example_inputs: tuple[Any, ...], batches: Iterable[Any], path: Path_
) -> None:
    """Quantized by its own ``PT2EQuantizer``, a scale per channel; float in- and outputs.

    Args:
        model: A float model, in evaluation mode.
        example_inputs: One sample; the file takes batches of this size.
        batches: Calibration batches of the same size.
        path: The file to write.

    Raises:
        ValueError: LiteRT cannot follow it.
    """
    graph = torch.export.export(model, example_inputs).module()
    prepared = prepare_pt2e(graph, stock_quantizer())
    with torch.no_grad():
        for batch in batches:
            prepared(*(batch if isinstance(batch, tuple) else (batch,)))
    converted = convert_pt2e(prepared, fold_quantize=False)
    Path(path).write_bytes(with_float_interface(lower(converted, example_inputs)))
