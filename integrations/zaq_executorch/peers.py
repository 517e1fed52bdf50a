"""What a network's own file is compared with: ExecuTorch's float file, and its stock int8."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from zaq_executorch.lowering import lower

Path_ = str | os.PathLike[str]


def write_float(model: nn.Module, example_inputs: tuple[Any, ...], path: Path_) -> None:
    """The float model in XNNPACK's delegate.

    Raises:
        ValueError: ExecuTorch cannot follow it.
    """
    graph = torch.export.export(model, example_inputs).module()
    Path(path).write_bytes(lower(graph, example_inputs, None))


def write_stock(
    model: nn.Module, example_inputs: tuple[Any, ...], batches: Iterable[Any], path: Path_
) -> None:
    """Quantized by ``XNNPACKQuantizer``, a scale per channel, as its documentation has it.

    Args:
        model: A float model, in evaluation mode.
        example_inputs: One sample; the file takes batches of this size.
        batches: Calibration batches of the same size.
        path: The file to write.

    Raises:
        ValueError: ExecuTorch cannot follow it.
    """
    config = get_symmetric_quantization_config(is_per_channel=True)
    graph = torch.export.export(model, example_inputs).module()
    prepared = prepare_pt2e(graph, XNNPACKQuantizer().set_global(config))
    with torch.no_grad():
        for batch in batches:
            prepared(*(batch if isinstance(batch, tuple) else (batch,)))
    Path(path).write_bytes(lower(convert_pt2e(prepared), example_inputs, None))
