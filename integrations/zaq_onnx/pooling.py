"""Average pooling such that every runtime's integer kernel divides by the right number.

OpenVINO's kernel pads with code 0 and not with the code that stands for zero, also where a Pad in
front was fused into it; ONNX Runtime's divides windows that reach beyond the image (``ceil_mode``)
by their whole size if padding counts. Padding of its own, on the integers, is right in both, and an
unpadded pool need not count padding.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from zaq_onnx.graph import Graph, attribute, make, set_attribute


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
        if values is None or values.op_type != "DequantizeLinear" or not _zeros(graph, pad):
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


def _zeros(graph: Graph, pad: NodeProto) -> bool:
    if attribute(pad, "mode", b"constant") != b"constant":
        return False
    name = pad.input[2] if len(pad.input) > 2 else ""
    value = graph.array(name) if name else np.zeros(())
    return value is not None and not value.any()
