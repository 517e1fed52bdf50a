"""The weights of an ONNX file for `zaq_plugin.archive`: integers, or codes of packed ones.

Which constants hold a packed weight's codes, and in what order, is found by packing it again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from onnx import TensorProto

from zaq_onnx.contents import read
from zaq_onnx.graph import Graph
from zaq_onnx.stacks import Item
from zaq_onnx.unfolding import unfold
from zaq_plugin.archive.readers import Codes, Weight


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
