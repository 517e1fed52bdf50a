"""Weights of transposed convolutions: the tool quantizes them anew, and gets the levels back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray
from torch.fx import GraphModule, Node

from zaq_pt2e.device.weights import Int8Weight, int8_weights
from zaq_pt2e.graph import argument

_KIND = "ConvTranspose2d"
_OHWI = (1, 2, 3, 0)
_ROUNDING = 0.5 + 1e-3
"""Of a step: how far the tool's integers are from the levels."""


def quantized_by_the_tool(dequantize: Node) -> bool:
    """Whether this constant must stay float: the weight of a transposed convolution.

    The converter turns it around, loses its grid by that, and keeps the layer float. Float weights
    between int8 activations it quantizes by their largest magnitudes. A layer of several groups it
    takes apart, and keeps it float in any case.
    """
    return all(
        user.target is torch.ops.aten.conv_transpose2d.input
        and argument(user, 1) is dequantize
        and argument(user, 6) in (None, 1)
        for user in dequantize.users
    )


def put_codes(model: Any, graph: GraphModule) -> None:
    """Give int8 transposed convolutions of a file the graph's integers and scales, in place.

    Args:
        model: The file, a ``ModelT``.
        graph: Int8, the one that the file was made of.

    Raises:
        ValueError: a weight of the file is none of the graph's.
    """
    known = [weight for weight in int8_weights(graph) if weight.kind == _KIND]
    if not known:
        return
    tensors = model.subgraphs[0].tensors
    for operator in model.subgraphs[0].operators:
        code = model.operatorCodes[operator.opcodeIndex]
        if code.builtinCode != schema.BuiltinOperator.TRANSPOSE_CONV:
            continue
        places = [int(i) for i in operator.inputs]  # shape, weight, activation, bias
        weight, source = tensors[places[1]], tensors[places[2]]
        if weight.type != schema.TensorType.INT8:
            continue
        codes, scales = _nearest(weight, model.buffers[weight.buffer].data, known)
        model.buffers[weight.buffer].data = codes.reshape(-1).view(np.uint8)
        weight.quantization.scale = scales
        weight.quantization.zeroPoint = np.zeros(len(scales), dtype=np.int64)
        weight.quantization.min = weight.quantization.max = None
        if len(places) > 3 and places[3] >= 0:
            bias = tensors[places[3]]
            buffer = model.buffers[bias.buffer]
            old = np.asarray(buffer.data, np.uint8).view(np.int32) * np.float64(1)
            old *= np.asarray(bias.quantization.scale, np.float64)
            steps = np.float32(source.quantization.scale[0]) * scales
            buffer.data = np.rint(old / steps).astype(np.int32).view(np.uint8)
            bias.quantization.scale = steps


def _nearest(
    tensor: Any, data: Any, known: list[Int8Weight]
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes (out, height, width, in) and scales (out) of the layer whose levels a tensor holds."""
    shape = tuple(int(n) for n in tensor.shape)
    steps = np.asarray(tensor.quantization.scale, np.float32)
    file = np.asarray(data, np.uint8).view(np.int8).reshape(shape) * steps.reshape(-1, 1, 1, 1)
    best, least = None, np.inf
    for weight in known:
        codes = np.ascontiguousarray(weight.codes.transpose(_OHWI))
        if codes.shape != shape:
            continue
        scales = np.broadcast_to(weight.scales, shape[:1]).astype(np.float32)
        levels = codes * scales.reshape(-1, 1, 1, 1)
        apart = float((np.abs(file - levels) / steps.reshape(-1, 1, 1, 1)).max(initial=0.0))
        if apart < least:
            best, least = (codes, scales), apart
    if best is None or least > _ROUNDING:
        raise ValueError(
            f"litert: a transposed convolution of the file has a weight {shape} that no layer of "
            "the model has. Leave transposed convolutions float."
        )
    return best
