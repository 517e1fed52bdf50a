"""Zeros around an image become the convolution's own padding, which costs no copy of the image."""

from __future__ import annotations

from onnx import NodeProto

from zaq_onnx.graph import Graph, attribute, set_attribute


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
