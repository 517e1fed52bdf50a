"""The weights of an ONNX file for `zaq_plugin.archive`: integers, or codes of packed ones.

Which constants hold a packed weight's codes, and in what order, is found by packing it again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from onnx import TensorProto

from zaq_onnx.codes import encode
from zaq_onnx.graph import Graph
from zaq_onnx.items import Item
from zaq_onnx.packing import load, weights_of
from zaq_onnx.unfolding import unfold
from zaq_plugin.archive.readers import Codes, Weight


def weights(path: str | os.PathLike[str]) -> Iterator[Weight | Codes]:
    """The int8 weights of a file, each once.

    Raises:
        FileNotFoundError, ValueError: see `zaq_onnx.load`.
    """
    graph = Graph(load(path, checked=False))
    portable = all(t.data_type != TensorProto.UINT4 for t in graph.constants.values())
    items: dict[str, Item] = {}
    seen: set[str] = set()
    for weight in weights_of(graph):
        if weight.name in seen:
            continue
        seen.add(weight.name)
        coded = encode(weight.rows) if weight.packed else None
        if coded is None:
            yield Weight(weight.integers, weight.axis)
        else:
            items[weight.name] = Item(weight.name, coded, weight.integers.shape, weight.axis)
    if items:
        yield from unfold(list(items.values()), portable=portable).stacks
