"""What importers stumble over, written such that none does."""

from __future__ import annotations

import re

import numpy as np
from onnx import ModelProto, NodeProto

from zaq_onnx.graph import Array, Graph, attribute, make

BATCH = "batch"
IR_VERSIONS = {19: 9, 20: 9, 21: 10}
"""Of the file format by opset: the oldest that may hold it, as runtimes refuse newer ones."""


def make_portable(graph: Graph) -> None:
    """Constants and attributes as all importers take them; the graph is changed in place.

    Every weight has a zero point of its own: where two share one, OpenVINO's converter leaves one
    of the layers in float, and ONNX Runtime refuses ``session.x64quantprecision``.
    """
    for node in graph.of_type("DequantizeLinear"):
        if node.input[0] not in graph.constants or len(node.input) < 3 or not node.input[2]:
            continue
        zero = graph.array(node.input[2])
        if zero is not None:
            stem = node.input[0].removesuffix(".weight")
            node.input[2] = graph.add_constant(f"{stem}.zero", zero)
    for node in graph.of_type("Reshape"):
        shape = graph.array(node.input[1])
        if attribute(node, "allowzero", 0) and shape is not None and np.all(shape != 0):
            attributes = [a for a in node.attribute if a.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(attributes)
    tokens_by_broadcast(graph)
    halve_first_in_gelu(graph)


def halve_first_in_gelu(graph: Graph) -> None:
    """``x * (0.5 * (1 + erf))`` becomes ``(0.5 * x) * (1 + erf)``: the same, bit for bit.

    It is the form that importers know: ONNX Runtime makes one kernel of it.
    """
    producers, consumers = graph.producers(), graph.consumers()
    for half in graph.of_type("Mul"):
        place = next((i for i in (0, 1) if _is_half(graph.array(half.input[i]))), None)
        readers = consumers[half.output[0]]
        if place is None or len(readers) != 1 or readers[0].op_type != "Mul":
            continue
        one = producers.get(half.input[1 - place])
        erfs = [] if one is None or one.op_type != "Add" else [producers.get(n) for n in one.input]
        if not any(erf is not None and erf.op_type == "Erf" for erf in erfs):
            continue
        product = readers[0]
        (x,) = [name for name in product.input if name != half.output[0]]
        product.input[:] = [half.output[0], half.input[1 - place]]
        half.input[:] = [x, half.input[place]]
    graph.sort()  # the other factor may come later than the half


def _is_half(value: Array | None) -> bool:
    return value is not None and np.array_equal(value, 0.5)


def tokens_by_broadcast(graph: Graph) -> None:
    """``Concat(Expand(token, batch), x)`` gets its batch from ``0 * x[:, :1, :1] + token``.

    Where a graph asks for the batch's size, OpenVINO (2026.4, ``read_model``) gives all channels of
    a quantized convolution the bias of its first channel.
    """
    producers, consumers = graph.producers(), graph.consumers()
    for concat in graph.of_type("Concat"):
        axis = attribute(concat, "axis", 0)
        makers = [producers.get(name) for name in concat.input]
        tokens = [m for m in makers if m is not None and _is_token(graph, m, producers)]
        others = [n for n, m in zip(concat.input, makers, strict=True) if m not in tokens]
        others = [name for name in others if name not in graph.constants]
        if axis < 1 or not tokens or not others:
            continue
        for expand in tokens:
            token = graph.array(expand.input[0])
            if token is None or len(consumers[expand.output[0]]) != 1:
                continue
            _broadcast(graph, expand, token, others[0])
    graph.prune()


def _is_token(graph: Graph, expand: NodeProto, producers: dict[str, NodeProto]) -> bool:
    """Whether a node repeats one constant for every sample, and changes nothing else of it."""
    if expand.op_type != "Expand":
        return False
    token, sizes = graph.array(expand.input[0]), producers.get(expand.input[1])
    if token is None or sizes is None or sizes.op_type != "Concat" or token.dtype != np.float32:
        return False
    first = producers.get(sizes.input[0])
    if first is None or first.op_type != "Shape" or attribute(first, "start", 0) != 0:
        return False
    if attribute(first, "end", None) != 1 or token.ndim < 2 or token.shape[0] != 1:
        return False
    rest = [graph.array(name) for name in sizes.input[1:]]
    if any(value is None for value in rest):
        return False
    wanted = np.concatenate([np.reshape(value, -1) for value in rest]).tolist()  # type: ignore[arg-type]
    kept = zip(wanted, token.shape[1:], strict=False)
    return len(wanted) == token.ndim - 1 and all(a in (1, b) for a, b in kept)


def _broadcast(graph: Graph, expand: NodeProto, token: Array, other: str) -> None:
    name, count = expand.output[0], token.ndim - 1
    bounds = [
        graph.add_constant(f"{name}.{word}", np.array(values, dtype=np.int64))
        for word, values in (
            ("starts", [0] * count),
            ("ends", [1] * count),
            ("axes", range(1, count + 1)),
        )
    ]
    none = graph.add_constant(f"{name}.none", np.array(0, dtype=np.float32))
    one, nothing = graph.free(f"{name}.one"), graph.free(f"{name}.nothing")
    graph.insert_before(expand, make("Slice", [other, *bounds], one))
    graph.insert_before(expand, make("Mul", [one, none], nothing))
    graph.insert_before(expand, make("Add", [nothing, expand.input[0]], name))
    graph.remove(expand)


def name_batch(model: ModelProto) -> None:
    """Call the first dimension of the inputs ``batch`` where the exporter has numbered it."""
    values = [*model.graph.input, *model.graph.output]
    firsts = {
        v.type.tensor_type.shape.dim[0].dim_param
        for v in model.graph.input
        if v.type.tensor_type.shape.dim
    } - {""}
    numbered = {name for name in firsts if re.fullmatch(r"s\d+", name)}
    names = {d.dim_param for v in values for d in v.type.tensor_type.shape.dim}
    if len(numbered) != 1 or BATCH in names:
        return
    old = rf"\b{numbered.pop()}\b"
    for value in values:
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = re.sub(old, BATCH, size.dim_param)
