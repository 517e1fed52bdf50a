"""`pack` and `unpack`: int8 weights to codes and codebooks, and back bit for bit."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable

import numpy as np
from onnx import ModelProto

from zaq_onnx.codes import Item
from zaq_onnx.files import OPSETS, Path_, copy_of, read, write
from zaq_onnx.graph import Graph, opset_of
from zaq_onnx.unfolding import unfold
from zaq_onnx.weights import Weights, weights_of

_WEIGHT_BYTES, _STACK_BYTES, _KIND_BYTES = 24, 250, 450
"""What a weight, a stack of them and a kind of codebooks take besides codes and codebooks."""


def pack_model(
    model: ModelProto, *, portable: bool = True, weights: Weights | None = None
) -> tuple[ModelProto, int]:
    """A copy with packed weights, and how many were packed; see `pack`.

    Args:
        model: Of int8 weights.
        portable: See `pack`.
        weights: The model's, where somebody has found them already.
    """
    graph = Graph(copy_of(model))
    weights = weights_of(graph) if weights is None else weights
    items = []
    for name, weight in weights.named.items():
        coded = None if weight.packed else weights.coded(name)
        if coded is not None:
            items.append(Item(name, coded, weight.integers.shape, weight.axis))
    chosen = _worthwhile(items)
    if not chosen:
        return graph.to_model(), 0
    names = [item.name for item in chosen]
    unfold(chosen, portable=portable).apply(graph, names)
    after = {w.name: w.integers for w in weights_of(graph) if w.packed}
    for name in names:
        if name not in after or not np.array_equal(after[name], weights.named[name].integers):
            raise RuntimeError(f"weight {name!r} does not unfold to itself; please report this.")
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
    opened = read(source)
    plain = opened.model
    if not portable and opset_of(plain) < OPSETS[False]:
        raise ValueError(
            f"{os.fspath(source)}: opset {opset_of(plain)}, but UINT4 needs opset {OPSETS[False]} "
            "or newer. Pack it with portable=True."
        )
    model, done = pack_model(plain, portable=portable, weights=opened.weights)
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
    opened = read(source)
    if not any(weight.packed for weight in opened.weights):
        raise ValueError(f"{os.fspath(source)}: nothing to unpack: no weight is packed.")
    return write(opened.plain, target)
