"""`pack` and `unpack`: int8 weights to codes and codebooks, and back bit for bit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto

from zaq_onnx.codes import encode, unfolding
from zaq_onnx.constants import UNFOLDING, evaluate
from zaq_onnx.files import Path_, check, digest, manifest_of, parse, require_opset, write
from zaq_onnx.graph import Array, Graph, attribute


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


def weights_of(graph: Graph) -> Iterator[Weight]:
    """Every int8 weight of at least two dimensions, packed or not.

    Raises:
        ValueError: a packed weight is damaged.
    """
    producers = graph.producers()
    for node in graph.of_type("DequantizeLinear"):
        name = node.input[0]
        source = producers.get(name)
        if name in graph.constants:
            value, packed = graph.array(name), False
        elif source is not None and source.op_type in UNFOLDING and _constant(name, producers):
            value, packed = evaluate(graph, name, producers), True
        else:
            continue
        if value is None or value.dtype != np.int8 or value.ndim < 2:
            continue
        scale = graph.array(node.input[1])
        _check_scale(name, value, scale, int(attribute(node, "axis", 1)))
        per_tensor = scale is None or scale.size == 1
        axis = 0 if per_tensor else int(attribute(node, "axis", 1)) % value.ndim
        stored = _stored(graph, name, producers) if packed else value.nbytes
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


def _constant(name: str, producers: dict[str, NodeProto]) -> bool:
    """Whether a tensor is made by unfolding operators alone (its ends are constants or not)."""
    node = producers.get(name)
    if node is None:
        return True
    return node.op_type in UNFOLDING and all(_constant(n, producers) for n in node.input if n)


def _stored(graph: Graph, name: str, producers: dict[str, NodeProto]) -> int:
    """Bytes of the constants that belong to one weight alone: those called after it."""
    total, waiting, seen = 0, [name], set()
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        if current in graph.constants:
            if current.startswith(f"{name}."):
                total += len(graph.constants[current].raw_data)
        elif current in producers:
            waiting += producers[current].input
    return total


def pack_model(model: ModelProto) -> tuple[ModelProto, int]:
    """A copy with packed weights, and how many were packed; see `pack`."""
    graph = Graph(_copied(model))
    done = 0
    seen: set[str] = set()
    for weight in list(weights_of(graph)):
        if weight.packed or weight.name in seen:
            continue
        seen.add(weight.name)
        coded = encode(weight.rows)
        if coded is None:
            continue
        made = unfolding(graph, weight.name, coded, weight.integers.shape, weight.axis)
        if made.size < weight.integers.nbytes:
            made.apply(weight.node)
            done += 1
    return graph.to_model(), done


def unpack_model(model: ModelProto) -> ModelProto:
    """A copy with int8 weights; see `unpack`."""
    graph = Graph(_copied(model))
    for weight in list(weights_of(graph)):
        if weight.packed and weight.name not in graph.constants:
            graph.nodes = [n for n in graph.nodes if weight.name not in n.output]
            graph.add_constant(weight.name, weight.integers)
    return graph.to_model()


def _copied(model: ModelProto) -> ModelProto:
    made = ModelProto()
    made.CopyFrom(model)
    return made


def load(path: Path_, *, checked: bool = True) -> ModelProto:
    """A model file that was checked: structure, operators, codes, and that nothing was changed.

    Args:
        path: The file.
        checked: Also run ONNX's checker.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated, damaged, of an unknown opset, or not what `export` wrote.
    """
    name = os.fspath(path)
    model = parse(path)
    require_opset(model, name)
    try:
        manifest = manifest_of(model)
        plain = unpack_model(model)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if checked:
        check(model, name)
    if manifest is not None and digest(plain) != manifest.get("digest"):
        raise ValueError(
            f"{name}: the model is not the one that was exported: its digest differs. The file is "
            "damaged, or another tool has changed it."
        )
    return model


def pack(source: Path_, target: Path_) -> int:
    """Pack the int8 weights of a model file.

    A weight of at most 16 levels a channel becomes UINT4 codes, others dense codes of up to 7
    bits, each with an int8 codebook per channel. Standard operators unfold them, which runtimes do
    once, when they load the model. Weights that would not get smaller stay as they are.

    Returns:
        Bytes of the new file.

    Raises:
        FileNotFoundError, ValueError: see `load`; or no weight gets smaller.
    """
    model, done = pack_model(load(source))
    if not done:
        raise ValueError(
            f"{os.fspath(source)}: no weight was packed. It holds no int8 weight, all are packed "
            "already, or none gets smaller (at most 128 levels a channel can be packed)."
        )
    return write(model, target)


def unpack(source: Path_, target: Path_) -> int:
    """Write a packed file's int8 model, bit for bit the file that was packed.

    Returns:
        Bytes of the new file.

    Raises:
        FileNotFoundError, ValueError: see `load`; or nothing in the file is packed.
    """
    model = load(source)
    if not any(weight.packed for weight in weights_of(Graph(model))):
        raise ValueError(f"{os.fspath(source)}: nothing to unpack: no weight is packed.")
    return write(unpack_model(model), target)
