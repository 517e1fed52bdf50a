"""What importers stumble over, written such that none does."""

from __future__ import annotations

import re

import numpy as np
from onnx import ModelProto

from zaq_onnx.graph import Graph, attribute

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
