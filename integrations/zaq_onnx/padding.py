"""Padding: a convolution's own, which costs no copy, and a pool's none of its own.

OpenVINO's kernel pads with code 0 and not with the code that stands for zero, also where a Pad in
front was fused into it; ONNX Runtime's divides windows that reach beyond the image (``ceil_mode``)
by their whole size if padding counts. Padding of its own, on the integers, is right in both, and an
unpadded pool need not count padding.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from zaq_onnx.graph import Graph, attribute, make, set_attribute


def pads_into_convolutions(graph: Graph) -> None:
    """``Pad -> Conv``, also with a grid between, becomes a convolution that pads.

    A grid holds zero exactly, so that padding and quantizing may change places. TensorFlow's
    padding "same" is exported like this where it is not the same on all sides.
    """
    for pad in graph.of_type("Pad"):
        amounts = _zeros(graph, pad)
        if amounts is None or pad.output[0] in graph.outputs:
            continue
        convolutions = _convolutions(graph, pad)
        if not convolutions or not all(_takes(node, amounts) for node in convolutions):
            continue
        for node in convolutions:
            old = attribute(node, "pads") or [0] * len(amounts)
            set_attribute(node, "pads", [a + b for a, b in zip(old, amounts, strict=True)])
        graph.rename_input(pad.output[0], pad.input[0])
        graph.remove(pad)


def _zeros(graph: Graph, pad: NodeProto) -> list[int] | None:
    """How many zeros a Pad puts before and behind each dimension of an image; else None."""
    inputs = [*pad.input, "", ""]
    amounts, value = graph.array(inputs[1]), graph.array(inputs[2])
    mode = attribute(pad, "mode", b"constant")
    if amounts is None or inputs[3] or mode != b"constant":
        return None
    if inputs[2] and (value is None or value.any()):
        return None
    rank = amounts.size // 2
    both = [int(a) for a in amounts]
    if rank < 3 or any(both[:2] + both[rank : rank + 2]) or min(both) < 0:
        return None
    return both[2:rank] + both[rank + 2 :]


def _convolutions(graph: Graph, pad: NodeProto) -> list[NodeProto] | None:
    """Everybody behind a Pad, seen through grids; None if it is not all convolutions."""
    consumers, convolutions = graph.consumers(), []
    waiting = [pad.output[0]]
    while waiting:
        name = waiting.pop()
        for node in consumers[name]:
            grid = node.op_type in ("QuantizeLinear", "DequantizeLinear")
            if node.input[0] != name or name in graph.outputs:
                return None
            if grid and _per_tensor(graph, node):
                waiting.append(node.output[0])
            elif node.op_type == "Conv" and list(node.input[1:]).count(name) == 0:
                convolutions.append(node)
            else:
                return None
    return convolutions


def _per_tensor(graph: Graph, node: NodeProto) -> bool:
    scale = graph.array(node.input[1])
    return scale is not None and scale.size == 1


def _takes(node: NodeProto, amounts: list[int]) -> bool:
    old = attribute(node, "pads") or [0] * len(amounts)
    return attribute(node, "auto_pad", b"NOTSET") == b"NOTSET" and len(old) == len(amounts)


def pools_without_padding(graph: Graph) -> None:
    """Padding that an average counts becomes a Pad, and Pads are of integers where they can be."""
    for pool in graph.of_type("AveragePool"):
        if not attribute(pool, "count_include_pad", 0):
            continue
        if attribute(pool, "auto_pad", b"NOTSET") != b"NOTSET":
            continue
        pads = [int(p) for p in attribute(pool, "pads") or []]
        if any(pads):
            half = len(pads) // 2
            amounts = np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64)
            zeros = graph.add_constant(f"{pool.output[0]}.pads", amounts)
            padded = make("Pad", [pool.input[0], zeros], graph.free(f"{pool.output[0]}.padded"))
            graph.insert_before(pool, padded)
            pool.input[0] = padded.output[0]
            set_attribute(pool, "pads", [0] * len(pads))
        set_attribute(pool, "count_include_pad", 0)
    _pads_of_integers(graph)


def _pads_of_integers(graph: Graph) -> None:
    """``DequantizeLinear -> Pad`` with zeros becomes ``Pad -> DequantizeLinear``."""
    producers = graph.producers()
    for pad in graph.of_type("Pad"):
        values = producers.get(pad.input[0])
        if (
            values is None
            or values.op_type != "DequantizeLinear"
            or not _pads_with_zeros(graph, pad)
        ):
            continue
        scale = graph.array(values.input[1])
        if values.input[0] in graph.constants or scale is None or scale.size != 1:
            continue
        zero = values.input[2] if len(values.input) > 2 else ""
        point = graph.array(zero) if zero else np.zeros((), np.uint8)
        if point is None:
            continue
        name = graph.add_constant(f"{pad.output[0]}.zero", point.reshape(()))
        codes = graph.free(f"{pad.output[0]}.codes")
        after = make("DequantizeLinear", [codes, *values.input[1:]], pad.output[0])
        rest = [name, *list(pad.input)[3:]]
        pad.input[:] = [values.input[0], pad.input[1], *rest]
        pad.output[0] = pad.name = codes
        graph.insert_after(pad, after)
        producers[after.output[0]] = after


def _pads_with_zeros(graph: Graph, pad: NodeProto) -> bool:
    if attribute(pad, "mode", b"constant") != b"constant":
        return False
    name = pad.input[2] if len(pad.input) > 2 else ""
    value = graph.array(name) if name else np.zeros(())
    return value is not None and not value.any()
