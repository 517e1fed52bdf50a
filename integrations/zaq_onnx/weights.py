"""The int8 weights of a file: one table, found once, in which each is encoded once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from onnx import NodeProto, TensorProto

from zaq_onnx.codes import Coded, encode
from zaq_onnx.constants import UNFOLDING, Evaluator
from zaq_onnx.graph import Array, Graph, attribute
from zaq_onnx.unfolding import BOOKS, CODES


@dataclass(frozen=True)
class Weight:
    """An integer weight of a model.

    Attributes:
        name: Of the tensor that DequantizeLinear reads.
        node: That DequantizeLinear.
        integers: int8.
        axis: Channel axis.
        packed: Whether the file holds it as codes.
        stored: Bytes in the file: integers, or codes and codebooks; scales are not counted.
    """

    name: str
    node: NodeProto
    integers: Array
    axis: int
    packed: bool
    stored: int

    @property
    def rows(self) -> Array:
        """(channels, weights a channel); one channel for a weight with a single scale."""
        return np.moveaxis(self.integers, self.axis, 0).reshape(self.integers.shape[self.axis], -1)

    def floats(self, scale: Array) -> Array:
        """Integers times scales, as DequantizeLinear multiplies them."""
        shape = [1] * self.integers.ndim
        shape[self.axis] = -1 if scale.size > 1 else 1
        values: Array = self.integers.astype(np.float32) * scale.astype(np.float32).reshape(shape)
        return values


class Weights:
    """The int8 weights of a graph: an entry for each DequantizeLinear that reads one.

    A table stays true while integers and their names do: nodes around them may change.

    Args:
        entries: In the graph's order.

    Attributes:
        named: An entry by the name of its tensor, the last where several read it.
        by_output: Entries by what their DequantizeLinear makes.
    """

    def __init__(self, entries: Iterator[Weight]) -> None:
        self._entries = tuple(entries)
        self._coded: dict[str, Coded | None] = {}

    def __iter__(self) -> Iterator[Weight]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @cached_property
    def named(self) -> dict[str, Weight]:
        """An entry for each tensor."""
        return {weight.name: weight for weight in self._entries}

    @cached_property
    def by_output(self) -> dict[str, Weight]:
        """An entry for each DequantizeLinear."""
        return {weight.node.output[0]: weight for weight in self._entries}

    def coded(self, name: str) -> Coded | None:
        """A tensor's smallest codes and codebooks, searched when they are first asked for."""
        if name not in self._coded:
            self._coded[name] = encode(self.named[name].rows)
        return self._coded[name]


def weights_of(graph: Graph) -> Weights:
    """Every int8 weight of at least two dimensions, packed or not.

    Raises:
        ValueError: a packed weight is damaged.
    """
    return Weights(_found(graph))


def _found(graph: Graph) -> Iterator[Weight]:
    value_of = Evaluator(graph)
    for node in graph.of_type("DequantizeLinear"):
        name = node.input[0]
        source = value_of.producers.get(name)
        if name in graph.constants:
            value, packed = graph.array(name), False
        elif source is not None and source.op_type in UNFOLDING and value_of.constant(name):
            value, packed = value_of(name), True
        else:
            continue
        if value is None or value.dtype != np.int8 or value.ndim < 2:
            continue
        scale = graph.array(node.input[1])
        _check_scale(name, value, scale, int(attribute(node, "axis", 1)))
        per_tensor = scale is None or scale.size == 1
        axis = 0 if per_tensor else int(attribute(node, "axis", 1)) % value.ndim
        stored = _stored(value_of, name) if packed else value.nbytes
        yield Weight(name, node, value, axis, packed, stored)


def _check_scale(name: str, value: Array, scale: Array | None, axis: int) -> None:
    if scale is None:
        return
    if not -value.ndim <= axis < value.ndim:
        raise ValueError(f"weight {name!r} of shape {value.shape} has no axis {axis}; damaged.")
    if scale.size not in (1, value.shape[axis]):
        raise ValueError(
            f"weight {name!r} of shape {value.shape} has {scale.size} scales along axis {axis}; "
            "the file is damaged."
        )


def _stored(value_of: Evaluator, name: str) -> int:
    """Bytes of a weight's codes and codebooks: its share of what the weights of a stack share."""
    producers = value_of.producers
    codes, books, rows = 0.0, 0, 1
    waiting: list[tuple[str, float]] = [(name, 1.0)]
    seen = set()
    while waiting:
        current, share = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        if current in producers:
            outputs = producers[current].output
            if len(outputs) > 1:
                share *= value_of(current).size / sum(value_of(n).size for n in outputs)
            waiting += [(source, share) for source in producers[current].input]
            continue
        tensor, word = value_of.graph.constants[current], current.rpartition(".")[2]
        if word in CODES:
            codes += share * len(tensor.raw_data)
        elif word in BOOKS:
            books += len(tensor.raw_data)
            halves = word == "curves" and tensor.data_type == TensorProto.UINT8
            rows = max(rows, *(d * (1 + halves) for d in tensor.dims[:1]))
    return round(codes + books * min(1.0, len(value_of(name)) / rows))
