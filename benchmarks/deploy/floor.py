"""What unfolding weights costs a load at the least: the simplest chains of standard operators.

Every chain makes int8 weights of the right shapes from half the bytes, and wrong values: none has
codebooks. It shows what is left for these before a load takes 1.5 times as long.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto

from zaq_onnx.files import parse, write
from zaq_onnx.graph import Array, Graph, make
from zaq_onnx.weights import weights_of

Chain = Callable[[Graph, str, Array], list[NodeProto]]


def cast(graph: Graph, name: str, value: Array) -> list[NodeProto]:
    """UINT4, cast to INT8."""
    return [make("Cast", [_nibbles(graph, name, value)], name, to=TensorProto.INT8)]


def cast_and_clip(graph: Graph, name: str, value: Array) -> list[NodeProto]:
    """The same, and one more operator on INT8."""
    ends = [graph.add_constant(f"{name}.{e}", np.array(e, np.int8)) for e in (0, 15)]
    return [
        make("Cast", [_nibbles(graph, name, value)], f"{name}.c", to=TensorProto.INT8),
        make("Clip", [f"{name}.c", *ends], name),
    ]


def float_and_back(graph: Graph, name: str, value: Array) -> list[NodeProto]:
    """UINT4, cast to float, where a level could be computed, and to INT8."""
    return [
        make("Cast", [_nibbles(graph, name, value)], f"{name}.c", to=TensorProto.FLOAT),
        make("Cast", [f"{name}.c"], name, to=TensorProto.INT8),
    ]


def gather(row: int) -> Chain:
    """A byte is an index into one small table, whose rows are that many weights."""

    def chain(graph: Graph, name: str, value: Array) -> list[NodeProto]:
        index = graph.add_constant(f"{name}.i", np.zeros(value.size // row, np.uint8))
        table = graph.add_constant(f"{name}.t", np.zeros((256, row), np.int8))
        shape = graph.add_constant(f"{name}.s", np.array(value.shape, np.int64))
        return [
            make("Cast", [index], f"{name}.c", to=TensorProto.INT32),
            make("Gather", [table, f"{name}.c"], f"{name}.g"),
            make("Reshape", [f"{name}.g", shape], name),
        ]

    return chain


CHAINS: dict[str, Chain] = {
    "one Cast, UINT4 to INT8": cast,
    "Cast, then Clip, in 8 bits": cast_and_clip,
    "Cast to float and back": float_and_back,
    "Gather of pairs, one table for all": gather(2),
    "Gather of fours, one table for all": gather(4),
    "Gather of eights, one table for all": gather(8),
}


def _nibbles(graph: Graph, name: str, value: Array) -> str:
    return graph.add_constant(f"{name}.u4", value.view(np.uint8) >> 4, kind=TensorProto.UINT4)


def floor_files(source: Path, folder: Path) -> dict[str, Path]:
    """A model whose weights are unfolded by each chain.

    Args:
        source: A file with int8 weights.
        folder: Where to write.
    """
    files = {}
    for number, (words, chain) in enumerate(CHAINS.items()):
        graph = Graph(parse(source))
        for weight in list(weights_of(graph)):
            if weight.integers.size % 8 == 0:
                graph.drop_constant(weight.name)
                graph.nodes[:0] = chain(graph, weight.name, weight.integers)
        path = folder / f"floor{number}.onnx"
        write(graph.to_model(), path)
        files[words] = path
    return files
