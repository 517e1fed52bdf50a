"""New nodes and constants, collected for a graph: each made once, with names that take no room."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import NodeProto, TensorProto

from zaq_onnx.graph import Array, Graph, make


class Nodes:
    """Collects nodes and constants.

    Attributes:
        nodes: In the order in which they were made, which is topological.
        constants: Values, and their types where numpy has none of the kind.
    """

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, tuple[Array, int | None]] = {}
        self._made: dict[tuple[object, ...], str] = {}
        self._number = 0

    def node(self, kind: str, inputs: list[str], *, output: str = "", **attributes: object) -> str:
        """The output of a node; the same node again is not made again. Names take room."""
        key = (kind, *inputs, repr(sorted(attributes.items())))
        if key in self._made and not output:
            return self._made[key]
        name = output or f"z{len(self.nodes)}"
        proto = make(kind, inputs, name, **attributes)
        proto.name = ""
        self.nodes.append(proto)
        self._made[key] = name
        return name

    def constant(self, word: str, value: Array, kind: int | None = None) -> str:
        """A constant of its own."""
        self._number += 1
        name = f"z{self._number}.{word}"
        self.constants[name] = (value, kind)
        return name

    def common(self, value: Array | int | float | Sequence[int]) -> str:
        """A small constant, made once; integers are int64 in lists and int32 alone."""
        if not isinstance(value, np.ndarray):
            alone = np.int32 if isinstance(value, int) else np.float32
            kind = alone if isinstance(value, int | float) else np.int64
            value = np.array(value, kind)
        for name, (other, _) in self.constants.items():
            same = other.dtype == value.dtype and other.shape == value.shape
            if same and np.array_equal(other, value):
                return name
        return self.constant("k", value)

    def halves(self, word: str, values: Array, axis: int) -> str:
        """int32 values of four bits, of which a byte holds two: one of each half along an axis.

        Gathering from a table of all bytes takes ONNX Runtime several times as long.
        """
        low, high = np.split(values.astype(np.uint8), 2, axis)
        both = self.node("Cast", [self.constant(word, low | high << 4)], to=TensorProto.INT32)
        parts = [self.node(kind, [both, self.common(16)]) for kind in ("Mod", "Div")]
        return self.node("Concat", parts, axis=axis)

    def rows(self, x: str, start: int, end: int) -> str:
        """Rows of a tensor, from one to before another."""
        return self.node("Slice", [x, *(self.common([n]) for n in (start, end, 0))])

    def split(self, x: str, sizes: list[int]) -> list[str]:
        """Parts of a tensor along its first axis."""
        first = self.node("Split", [x, self.common(sizes)], axis=0)
        names = [first, *(f"{first}.{i}" for i in range(1, len(sizes)))]
        self.nodes[-1].output.extend(names[1:])
        return names

    def apply(self, graph: Graph, names: Sequence[str]) -> None:
        """Put everything into a graph, in place of the constants of these names."""
        taken = {*graph.constants, *graph.inputs, *(n for node in graph.nodes for n in node.output)}
        new_names = {n for node in self.nodes for n in node.output} | set(self.constants)
        clash = sorted((new_names - set(names)) & taken)
        if clash:
            raise ValueError(f"the graph already has a tensor {clash[0]!r}; rename it.")
        for name in names:
            graph.drop_constant(name)
        for name, (value, kind) in self.constants.items():
            graph.add_constant(name, value, kind=kind)
        graph.nodes[:0] = self.nodes

    @property
    def size(self) -> int:
        """Bytes in the file: nodes, constants, and what names and types take."""
        total = sum(node.ByteSize() + 4 for node in self.nodes)
        for name, (value, kind) in self.constants.items():
            bits = 4 if kind == TensorProto.UINT4 else 8 * value.itemsize
            total += math.ceil(value.size * bits / 8) + len(name) + 16
        return total
