"""Lowering to Inductor's int8 kernels on x86, checked."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule
from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86

from zaq_pt2e._compat import lowered_name, register_int8_kernels
from zaq_pt2e.packing import OPERATORS, unpack

_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)


@torch.no_grad()
def lower(converted: GraphModule, example_inputs: tuple[Any, ...]) -> GraphModule:
    """Lower a converted model to int8 kernels by the host's own ``lower_pt2e_quantized_to_x86``.

    Three things are added: the kernels' patterns are registered (in a process that only loads a
    model, the host forgets to), views may stand behind kernels, and a model that would run in float
    altogether is an error.

    Args:
        converted: From ``convert_pt2e``, also loaded from a file, also packed.
        example_inputs: Inputs; the lowered model runs on their shapes.

    Raises:
        ValueError: no layer was given an int8 kernel.
    """
    register_int8_kernels()
    if any(node.target is OPERATORS[1] for node in converted.graph.nodes):
        converted = unpack(converted)
    lowered: GraphModule = lower_pt2e_quantized_to_x86(converted, example_inputs)
    if not any(lowered_name(node.target) for node in lowered.graph.nodes):
        raise ValueError(
            "lower: no layer runs on an int8 kernel. They need int8 weights and 8-bit (or "
            "narrower) uniform inputs; weight-only models (activations=None) run in float."
        )
    _copy_where_no_view_exists(lowered)
    return lowered


def _copy_where_no_view_exists(lowered: GraphModule) -> None:
    """Kernels give channels-last tensors, of which the traced model's views may not exist."""
    for node in lowered.graph.nodes:
        if node.op == "call_function" and node.target in _VIEWS:
            node.target = torch.ops.aten.reshape.default
    lowered.recompile()
