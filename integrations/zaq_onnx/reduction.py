"""Weights that processors without VNNI multiply exactly, too: those that others have quantized.

Formats of this package choose such levels from the start, see `zaq_plugin.pwlq.overflow`; nothing
is left to do here unless they were told ``overflow="allowed"``.

Their int8 kernels (AVX2's and AVX-512's ``vpmaddubsw``) add two products of an activation (0 to
255) and a weight (-127 to 127) in 16 bits, which saturate: 255 * (127 + 127) is 64,770, and becomes
32,767. That is so in ONNX Runtime and in OpenVINO, silently. Nothing is lost where the magnitudes
of two neighbouring weights of one sign add up to at most 128. Channels in which they do not are put
on a coarser grid, such that they just do; the grid is the one in which the channel's weights, and
their sum, change least. Halving the range of all weights, as other tools do, moves these sums, and
so the means of activations, several times as far.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from zaq_onnx.codes import encode
from zaq_onnx.graph import Array, Graph, attribute
from zaq_onnx.naming import LAYERS
from zaq_onnx.weights import Weight, weights_of
from zaq_plugin.pwlq.curves import (
    BREAKPOINT,
    CLIP,
    LARGEST,
    MARGIN,
    Shape,
    exact_levels,
    numbers_of,
)

SUM = 2**15 - 1
"""The largest sum of two products that 16 bits hold."""

_LOWEST = 0.65
"""Grids coarser than this share of the finest that is allowed are not tried."""

_CHUNK = 256


def reduce_weights(graph: Graph) -> list[str]:
    """Put weights on grids on which no two products saturate; the graph is changed in place.

    Returns:
        Names of the weights that were changed.
    """
    changed = []
    for group in _multiplied(graph):
        rows, factors = reduce_rows(group.rows, group.limit)
        if (factors == 1).all():
            continue
        _replace(graph, group, rows, factors)
        changed.append(group.weights[0].name)
    graph.reduced = len(changed)
    return changed


def saturable(graph: Graph) -> list[str]:
    """Names of weights with which two products may saturate, for some activations."""
    return [
        group.weights[0].name
        for group in _multiplied(graph)
        if worst_pairs(group.rows).max(initial=0) > group.limit
    ]


@dataclass(frozen=True)
class _Multiplied:
    """A weight and who multiplies by it.

    Attributes:
        weights: One or several DequantizeLinear of the same integers.
        layers: Behind them.
        order: The integers in the order in which kernels add: channels first, their inputs last.
        rows: (channels, weights a channel) of it; one channel if there is one scale.
        limit: For the sum of two neighbours' magnitudes.
    """

    weights: list[Weight]
    layers: list[NodeProto]
    order: Array
    rows: Array
    limit: int


def _multiplied(graph: Graph) -> list[_Multiplied]:
    """Weights of kernels that may saturate."""
    groups: dict[str, list[Weight]] = defaultdict(list)
    for weight in weights_of(graph):
        groups[weight.name].append(weight)
    multiplied = []
    for weights in groups.values():
        layers = [layer for weight in weights for layer in _layers(graph, weight)]
        if not layers or any(_depthwise(layer, weights[0].integers) for layer in layers):
            continue
        scale = graph.array(weights[0].node.input[1])
        assert scale is not None
        order = _order(weights[0])
        rows = order.reshape(1 if scale.size == 1 else len(order), -1)
        limit = SUM // max(_highest(graph, layer) for layer in layers)
        multiplied.append(_Multiplied(weights, layers, order, rows, limit))
    return multiplied


def _layers(graph: Graph, weight: Weight) -> list[NodeProto]:
    """The layers that multiply by a weight."""
    output = weight.node.output[0]
    return [n for n in graph.of_type(*LAYERS) if len(n.input) > 1 and n.input[1] == output]


def _depthwise(layer: NodeProto, integers: Array) -> bool:
    """Depthwise kernels multiply in 32 bits."""
    return attribute(layer, "group", 1) > 1 and integers.shape[1] == 1


def _highest(graph: Graph, layer: NodeProto) -> int:
    """The largest integer of a layer's input; 255 if it is not known to be smaller."""
    producers = graph.producers()
    values = producers.get(layer.input[0])
    limit = producers.get(values.input[0]) if values is not None else None
    if values is None or limit is None or values.op_type != "DequantizeLinear":
        return 255
    clip = limit.op_type == "Clip" and len(limit.input) > 2
    high = graph.array(limit.input[2]) if clip else None
    return max(1, int(high)) if high is not None and high.dtype == np.uint8 else 255


def _order(weight: Weight) -> Array:
    """A weight in the order in which kernels add: channels first, their inputs last."""
    first = np.moveaxis(weight.integers, weight.axis, 0)
    return first if first.ndim < 3 else np.moveaxis(first, 1, -1)


def _replace(graph: Graph, group: _Multiplied, rows: Array, factors: Array) -> None:
    head, weights, layers = group.weights[0], group.weights, group.layers
    order = rows.reshape(group.order.shape)
    first = order if order.ndim < 3 else np.moveaxis(order, -1, 1)
    scales = [graph.array(weight.node.input[1]) for weight in weights]
    graph.drop_constant(head.name)
    graph.add_constant(head.name, np.ascontiguousarray(np.moveaxis(first, 0, head.axis)))
    for weight, scale in zip(weights, scales, strict=True):
        assert scale is not None
        coarser = (scale.astype(np.float64) / factors.reshape(scale.shape)).astype(np.float32)
        weight.node.input[1] = graph.add_constant(weight.node.input[1], coarser)
    producers = graph.producers()
    for layer in layers:
        source = producers.get(layer.input[2]) if len(layer.input) > 2 else None
        if source is None or source.op_type != "DequantizeLinear":
            continue
        codes, scale = (graph.array(name) for name in source.input[:2])
        if codes is None or scale is None or codes.dtype != np.int32:
            continue
        grid = (np.broadcast_to(scale, codes.shape) / factors).astype(np.float32)
        source.input[0] = graph.add_constant(
            source.input[0], np.rint(codes * np.broadcast_to(factors, codes.shape)).astype(np.int32)
        )
        source.input[1] = graph.add_constant(source.input[1], grid)


def reduce_rows(rows: Array, limit: int) -> tuple[Array, Array]:
    """Weights on grids on which two neighbours of one sign are at most ``limit`` together.

    Args:
        rows: (channels, weights a channel) int8, in the order in which kernels add.
        limit: For the sum of two magnitudes.

    Returns:
        The weights, int8; and (channels,) float64 of each grid's integers for one of before, 1
        where a channel is as it was.
    """
    reduced, factors = rows.copy(), np.ones(len(rows))
    wide = np.flatnonzero(worst_pairs(rows) > limit)
    if not len(wide):
        return reduced, factors
    for part in _tables(rows[wide]):
        for start in range(0, len(part.codes), _CHUNK):
            some = part.rows(slice(start, start + _CHUNK))
            levels, scales = _search(some, limit)
            where = wide[start : start + _CHUNK]
            reduced[where] = np.take_along_axis(levels, some.codes, 1).astype(np.int8)
            factors[where] = scales
    return reduced, factors


def worst_pairs(rows: Array) -> Array:
    """(channels,) the largest sum of two neighbours' magnitudes that have one sign."""
    values = rows.astype(np.int64)
    largest = np.abs(values).max(1, initial=0)
    for sign in (1, -1):
        one = np.maximum(sign * values, 0)
        largest = np.maximum(largest, (one[:, 1:] + one[:, :-1]).max(1, initial=0))
    return largest


@dataclass(frozen=True)
class _Table:
    """Weights as codes of levels, and how to make the levels smaller.

    Attributes:
        codes: (channels, weights) int64.
        book: (channels, levels) float64.
        numbers: (channels, 4) breakpoints and clips of levels that PWLQ made; else None.
        shape: Their pieces.
        apart: (channels, levels) bool, which the numbers do not give.
    """

    codes: Array
    book: Array
    numbers: Array | None
    shape: Shape | None
    apart: Array

    def rows(self, part: slice) -> _Table:
        """Some channels."""
        numbers = None if self.numbers is None else self.numbers[part]
        return _Table(self.codes[part], self.book[part], numbers, self.shape, self.apart[part])

    def smaller(self, tops: Array) -> tuple[Array, Array]:
        """Levels whose clip is an integer below 127, and whether any lies at a tie.

        Levels of PWLQ come from its numbers again, so that they still are a curve of three.
        """
        factors = (tops / LARGEST)[:, None]
        levels = np.rint(self.book * factors)
        if self.numbers is None or self.shape is None:
            return levels, np.zeros_like(self.apart)
        numbers = self.numbers.astype(np.float64) * factors
        steps = np.array([BREAKPOINT, BREAKPOINT, CLIP, CLIP])
        exact = exact_levels(np.rint(numbers * steps) / steps, self.shape).astype(np.float64)
        tie = (np.abs(exact - np.rint(exact)) > 0.5 - MARGIN) & ~self.apart
        return np.where(self.apart, levels, np.rint(exact)), tie


def _tables(rows: Array) -> Iterator[_Table]:
    coded = encode(rows)
    if coded is not None and coded.curve is not None:
        curve = coded.curve
        apart = np.zeros(curve.book.shape, bool)
        apart[curve.exceptions[:, 0], curve.exceptions[:, 1]] = True
        numbers, shape = numbers_of(curve.nibbles, curve.shape), curve.shape
        yield _Table(coded.codes.astype(np.int64), curve.book.astype(float), numbers, shape, apart)
        return
    book = np.broadcast_to(np.arange(-128.0, 128.0), (len(rows), 256))
    yield _Table(rows.astype(np.int64) + 128, book, None, None, np.zeros(book.shape, bool))


def _search(table: _Table, limit: int) -> tuple[Array, Array]:
    """Levels and factors with which weights, and each channel's sum of them, change least."""
    counts = _counts(table)
    partners, worst = _partners(table)
    used = counts > 0
    finest = np.minimum(LARGEST, np.ceil(LARGEST * (limit + 1) / worst).astype(int))
    # Half the range is always allowed.
    factors = np.full(len(worst), (limit // 2) / (LARGEST + 1))
    levels = np.rint(table.book * factors[:, None])
    least = np.full(len(worst), np.inf)
    for less in range(int((1 - _LOWEST) * LARGEST)):
        tops = finest - less
        trial, tie = table.smaller(np.maximum(tops, 1))
        size = np.abs(trial) * used
        sums = (size + np.take_along_axis(np.abs(trial), partners, 1) * used).max(1)
        allowed = (sums <= limit) & ~(tie & used).any(1) & (tops >= _LOWEST * finest)
        moved = trial * (LARGEST / np.maximum(tops, 1))[:, None] - table.book
        error = (counts * moved**2).sum(1) + (counts * moved).sum(1) ** 2
        better = allowed & (error < least)
        least[better], levels[better] = error[better], trial[better]
        factors[better] = tops[better] / LARGEST
    return levels, factors


def _counts(table: _Table) -> Array:
    """(channels, levels): how many weights have each."""
    channels, levels = table.book.shape
    flat = table.codes + np.arange(channels)[:, None] * levels
    return np.bincount(flat.reshape(-1), minlength=channels * levels).reshape(channels, levels)


def _partners(table: _Table) -> tuple[Array, Array]:
    """(channels, levels) code of each level's largest neighbour of its sign; (channels,) the worst.

    A level without such a neighbour has zero's code.
    """
    channels, levels = table.book.shape
    values = np.take_along_axis(table.book, table.codes, 1)
    keys = (np.abs(values) * 256 + table.codes).astype(np.int64)
    zero = np.abs(table.book).argmin(1)
    best = np.repeat(zero[:, None], levels, 1)
    rows = np.arange(channels)[:, None] * levels
    for one, other in ((slice(1, None), slice(-1)), (slice(-1), slice(1, None))):
        same = values[:, one] * values[:, other] > 0
        where = (rows + table.codes[:, one])[same]
        np.maximum.at(best.reshape(-1), where, keys[:, other][same])
    partners = best % 256
    sums = np.abs(table.book) + np.take_along_axis(np.abs(table.book), partners, 1)
    return partners, (sums * (_counts(table) > 0)).max(1)
