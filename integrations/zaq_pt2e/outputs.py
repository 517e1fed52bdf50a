"""Grids for what layers give, where those who read it put it on none.

Kernels of x86 take a layer's output as it comes. The kernels of devices are int8 from one tensor to
the next: a layer whose output has no grid is no int8 layer there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, SharedQuantizationSpec

from zaq_pt2e._compat import ANNOTATION, annotation_of
from zaq_pt2e.batch_norm import keeps_statistics
from zaq_pt2e.graph import WEIGHTED, is_constant, is_float_tensor, note_of
from zaq_pt2e.rewrites import BATCH_NORM

_aten = torch.ops.aten
_BINARY = (_aten.add.Tensor, _aten.add_.Tensor, _aten.mul.Tensor, _aten.mul_.Tensor)

FUSED = (
    _aten.relu.default,
    _aten.relu_.default,
    _aten.hardtanh.default,
    _aten.hardtanh_.default,
    _aten.relu6.default,
    _aten.relu6_.default,
)
"""What a kernel does to its sums before it rounds them."""
_DROPOUT = (_aten.dropout.default, _aten.dropout_.default, _aten.feature_dropout.default)


def last_of(node: Node) -> Node:
    """The node behind which a layer's kernel rounds: the layer's, or that of its activation.

    A BatchNorm that the host keeps for training and folds in conversion belongs to the layer, and
    so does a dropout, which is nothing in a file.
    """
    while len(node.users) == 1:
        user = next(iter(node.users))
        if user.target not in (*FUSED, *_DROPOUT) and not _trained_with(node, user):
            break
        node = user
    return node


def _trained_with(layer: Node, user: Node) -> bool:
    """Whether a node is a layer's BatchNorm: one that could not be folded stands in its note."""
    return (
        user.target is BATCH_NORM
        and layer.target in WEIGHTED
        and keeps_statistics(user)
        and note_of(layer).get("norm") is None
    )


def annotate_joins(model: GraphModule, qspec: Callable[[], Any]) -> None:
    """Give what sums, products and concatenations read a grid, constants included.

    A device's kernel for them is int8 with all of its inputs, or with none; what a concatenation
    reads is on one grid, and so is a slice and what it is of.
    """
    for node in model.graph.nodes:
        if node.op != "call_function" or annotation_of(node) is not None:
            continue
        if node.target in _BINARY:
            inputs = list(node.args[:2])
        elif node.target is _aten.cat.default:
            inputs = list(node.args[0])
        elif node.target is _aten.slice.Tensor:
            inputs = [node.args[0]]
        else:
            continue
        if not all(map(is_float_tensor, inputs)) or all(map(is_constant, inputs)):
            continue
        edges: dict[Node, Any] = {x: qspec() for x in inputs}
        output = None
        if node.target not in _BINARY:
            shared = SharedQuantizationSpec((inputs[0], node))
            edges = {x: shared if x is not inputs[0] else edges[x] for x in edges}
            output = shared
        node.meta[ANNOTATION] = QuantizationAnnotation(
            input_qspec_map=edges, output_qspec=output, _annotated=True
        )


def annotate_outputs(model: GraphModule, qspec: Callable[[], Any]) -> None:
    """Give every annotated node's output a grid, unless all who read it put it on one.

    Args:
        model: Annotated; its annotations are changed.
        qspec: Makes the host's word for an activation's grid.
    """
    for node in list(model.graph.nodes):
        annotation = annotation_of(node)
        if annotation is None or annotation.output_qspec is not None:
            continue
        last = last_of(node)
        if all(_on_grid(user, last) for user in last.users):
            continue
        if annotation_of(last) is None:
            last.meta[ANNOTATION] = QuantizationAnnotation(_annotated=True)
        annotation_of(last).output_qspec = qspec()


def _on_grid(user: Node, source: Node) -> bool:
    annotation = annotation_of(user)
    return annotation is not None and annotation.input_qspec_map.get(source) is not None
