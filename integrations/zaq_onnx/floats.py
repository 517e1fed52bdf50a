"""The weights of a file as floats, by the names of the layers: what its kernels multiply by."""

from __future__ import annotations

import numpy as np

from zaq_onnx.contents import read
from zaq_onnx.files import Path_
from zaq_onnx.graph import Array, Graph
from zaq_onnx.naming import LAYERS
from zaq_onnx.weights import Weight


def dequantized(weight: Weight, scale: Array) -> Array:
    """Integers times scales, as DequantizeLinear multiplies them."""
    shape = [1] * weight.integers.ndim
    shape[weight.axis] = -1 if scale.size > 1 else 1
    values: Array = weight.integers.astype(np.float32) * scale.astype(np.float32).reshape(shape)
    return values


def float_weights(path: Path_) -> dict[str, tuple[str, Array]]:
    """Layer name to operator and weight, integers times scales, in the file's own layout.

    Weights of one dimension, and those that are computed, are left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no ONNX model, or a damaged one.
    """
    contents = read(path)
    graph, integers = Graph(contents.plain), contents.weights.named
    producers = graph.producers()
    weights: dict[str, tuple[str, Array]] = {}
    for node in graph.of_type(*LAYERS):
        source = producers.get(node.input[1]) if len(node.input) > 1 else None
        weight = integers.get(source.input[0]) if source is not None else None
        if weight is not None:
            scale = graph.array(weight.node.input[1])
            name, value = weight.name, weight.integers.astype(np.float32)
            if scale is not None:
                value = dequantized(weight, scale)
        else:
            name, constant = node.input[1], graph.array(node.input[1])
            if constant is None or constant.ndim < 2:
                continue
            value = constant.astype(np.float32)
        weights.setdefault(name.removesuffix(".weight"), (node.op_type, value))
    return weights
