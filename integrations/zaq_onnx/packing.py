"""`pack` and `unpack`: int8 weights to codes and codebooks, and back bit for bit."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from zaq_onnx.codes import encode
from zaq_onnx.constants import UNFOLDING, Evaluator
from zaq_onnx.files import OPSETS, Path_, check, digest, manifest_of, parse, require_opset, write
from zaq_onnx.graph import Array, Graph, attribute, opset_of
from zaq_onnx.items import Item
from zaq_onnx.unfolding import BOOKS, CODES, unfold

_WEIGHT_BYTES, _STACK_BYTES, _KIND_BYTES = 24, 250, 450
"""What a weight, a stack of them and a kind of codebooks take besides codes and codebooks."""


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


def pack_model(model: ModelProto, *, portable: bool = True) -> tuple[ModelProto, int]:
    """A copy with packed weights, and how many were packed; see `pack`."""
    graph = Graph(_copied(model))
    items: dict[str, Item] = {}
    values: dict[str, Array] = {}
    for weight in weights_of(graph):
        if weight.packed or weight.name in items:
            continue
        coded, values[weight.name] = encode(weight.rows), weight.integers
        if coded is not None:
            items[weight.name] = Item(weight.name, coded, weight.integers.shape, weight.axis)
    chosen = _worthwhile(list(items.values()))
    if not chosen:
        return graph.to_model(), 0
    before = {item.name: values[item.name] for item in chosen}
    unfold(chosen, portable=portable).apply(graph, list(before))
    after = {w.name: w.integers for w in weights_of(graph) if w.packed}
    wrong = [n for n, v in before.items() if n not in after or not np.array_equal(after[n], v)]
    if wrong:
        raise RuntimeError(f"weight {wrong[0]!r} does not unfold to itself; please report this.")
    return graph.to_model(), len(chosen)


def _worthwhile(items: list[Item]) -> list[Item]:
    """Those whose codes are smaller, counting what nodes take."""
    groups: tuple[tuple[Callable[[Item], object], int], ...] = (
        (lambda item: item.name, _WEIGHT_BYTES),
        (lambda item: item.stack, _STACK_BYTES),
        (lambda item: item.kind, _KIND_BYTES),
    )
    saved = {item.name: math.prod(item.shape) - item.coded.bytes for item in items}
    for key, cost in groups:
        gains: dict[object, float] = defaultdict(float)
        for item in items:
            gains[key(item)] += saved[item.name]
        items = [item for item in items if gains[key(item)] > cost]
    return items


def unpack_model(model: ModelProto) -> ModelProto:
    """A copy with int8 weights; see `unpack`."""
    graph = Graph(_copied(model))
    for weight in list(weights_of(graph)):
        if weight.packed and weight.name not in graph.constants:
            graph.nodes = [n for n in graph.nodes if weight.name not in n.output]
            graph.add_constant(weight.name, weight.integers)
    return graph.to_model()


def _copied(model: ModelProto) -> ModelProto:
    clone = ModelProto()
    clone.CopyFrom(model)
    return clone


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
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(
            f"{name}: damaged: a node has not the inputs or attributes of its operator "
            f"({type(error).__name__}: {error}). Write the file again with zaq_onnx.export."
        ) from error
    if checked:
        check(model, name)
    if manifest is not None and digest(plain) != manifest.get("digest"):
        raise ValueError(
            f"{name}: the model is not the one that was exported: its digest differs. The file is "
            "damaged, or another tool has changed it."
        )
    return model


def pack(source: Path_, target: Path_, *, portable: bool = True) -> int:
    """Pack the int8 weights of a model file.

    Weights become dense codes of up to 7 bits with an int8 codebook per channel. Standard operators
    unfold them, which runtimes do once, when they load the model. Weights that would not get
    smaller stay as they are.

    Args:
        source: The file.
        target: The file to write.
        portable: Unfold them with types and operators that every runtime has; else codes of 4 bits
            are UINT4, which takes slightly less room, and opset 21.

    Returns:
        Bytes of the new file.

    Raises:
        FileNotFoundError, ValueError: see `load`; or no weight gets smaller; or an opset without
            UINT4.
    """
    plain = load(source)
    if not portable and opset_of(plain) < OPSETS[False]:
        raise ValueError(
            f"{os.fspath(source)}: opset {opset_of(plain)}, but UINT4 needs opset {OPSETS[False]} "
            "or newer. Pack it with portable=True."
        )
    model, done = pack_model(plain, portable=portable)
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
