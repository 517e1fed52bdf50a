"""The weights of a file for others: as floats by layer, and as `zaq_plugin.archive` takes them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
from onnx import TensorProto

from zaq_onnx.codes import Item
from zaq_onnx.files import Path_, read
from zaq_onnx.graph import Array, Graph
from zaq_onnx.naming import LAYERS
from zaq_onnx.unfolding import unfold
from zaq_plugin.archive.readers import Codes, Weight

# ---- As floats -----------------------------------------------------------------------------------


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
                value = weight.floats(scale)
        else:
            name, constant = node.input[1], graph.array(node.input[1])
            if constant is None or constant.ndim < 2:
                continue
            value = constant.astype(np.float32)
        weights.setdefault(name.removesuffix(".weight"), (node.op_type, value))
    return weights


# ---- Integers, or codes of packed ones -----------------------------------------------------------
#
# Which constants hold a packed weight's codes, and in what order, is found by packing it again.


def weights(path: str | os.PathLike[str]) -> Iterator[Weight | Codes]:
    """The int8 weights of a file, each once.

    Raises:
        FileNotFoundError, ValueError: see `zaq_onnx.load`.
    """
    contents = read(path, checked=False)
    constants = Graph(contents.model).constants.values()
    items = []
    for name, weight in contents.weights.named.items():
        coded = contents.weights.coded(name) if weight.packed else None
        if coded is None:
            yield Weight(weight.integers, weight.axis)
        else:
            items.append(Item(name, coded, weight.integers.shape, weight.axis))
    if items:
        portable = all(tensor.data_type != TensorProto.UINT4 for tensor in constants)
        yield from unfold(items, portable=portable).stacks
