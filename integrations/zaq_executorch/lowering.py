"""A graph as the bytes of a `.pte` file: int8, float, or the tool's own stock int8."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from executorch.exir import to_edge_transform_and_lower
from torch import nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from zaq_executorch._compat import quiet
from zaq_executorch.reading import is_layer
from zaq_plugin.errors import in_short
from zaq_plugin.graph import name_of_target
from zaq_plugin.student.batches import dense
from zaq_pt2e.device.making import observe


def lower(graph: GraphModule, example: tuple[Any, ...], shapes: Any) -> bytes:
    """The program's bytes.

    Args:
        graph: Its activations are int8.
        example: Of the largest batch.
        shapes: ``dynamic_shapes`` of torch.export; None for this batch only.

    Raises:
        ValueError: torch.export or ExecuTorch cannot follow the graph, or a layer is left outside
            the delegate. Such a layer reads what nobody has written: the file would load, and give
            the same answer to every input.
    """
    example = dense(example)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(graph, example, dynamic_shapes=shapes)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            size = len(example[0])
            raise ValueError(
                f"executorch: torch.export cannot give the model batches of "
                f"{'up to ' if shapes else ''}{size}: {in_short(error)}"
            ) from error
        try:
            edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            text = f"executorch: the graph cannot be lowered: {in_short(error)}"
            raise ValueError(text) from error
        left = _left(edge.exported_program().graph_module)
        if left:
            raise ValueError(
                f"executorch: XNNPACK has left {len(left)} layers outside its delegate, which "
                f"would then compute nothing: {'; '.join(left[:5])}. Leave them float, or write "
                "them as layers that it has: two-dimensional convolutions and linear layers."
            )
        buffer: bytes = edge.to_executorch().buffer
    return buffer


def _left(outer: GraphModule) -> list[str]:
    operators = []
    for node in outer.graph.nodes:
        name = name_of_target(node.target)
        if node.op == "call_function" and is_layer(name.replace("aten.", "aten::")):
            stack = list(node.meta.get("nn_module_stack", {}).values())
            where = stack[-1][0] if stack else node.name
            value = node.meta.get("val")
            shape = tuple(value.shape) if isinstance(value, torch.Tensor) else ()
            operators.append(f"{name} of {where or 'the model'}, output {shape}")
    return operators


# ---- What a network's own file is compared with --------------------------------------------------

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
    observe(prepared, batches)
    Path(path).write_bytes(lower(convert_pt2e(prepared), example_inputs, None))
