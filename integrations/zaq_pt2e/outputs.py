"""Grids for what layers give, where those who read it put it on none.

Kernels of x86 take a layer's output as it comes. The kernels of devices are int8 from one tensor to
the next: a layer whose output has no grid is no int8 layer there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation

from zaq_pt2e._compat import ANNOTATION, annotation_of

_aten = torch.ops.aten

FUSED = (
    _aten.relu.default,
    _aten.relu_.default,
    _aten.hardtanh.default,
    _aten.hardtanh_.default,
    _aten.relu6.default,
    _aten.relu6_.default,
)
"""What a kernel does to its sums before it rounds them."""


def last_of(node: Node) -> Node:
    """The node behind which a layer's kernel rounds: the layer's, or that of its activation."""
    while len(node.users) == 1 and next(iter(node.users)).target in FUSED:
        node = next(iter(node.users))
    return node


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
