"""The host's conversion, proved on the batch at hand, and its lowering to Inductor's kernels."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.fx import GraphModule
from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

from zaq_plugin.student.hand_over import (
    SAME_DB,
    difference,
    inputs_at_hand,
    keep_inputs,
    noise_of,
    other_side,
    refusal,
    student_side,
)
from zaq_pt2e._compat import lowered_name, register_int8_kernels
from zaq_pt2e.packing import OPERATORS, unpack

_ADVICE = (
    "torchao converts that part to something else: leave it out with exclude=[...], or write it in "
    "another way"
)


def convert(prepared: GraphModule, *, check: bool = True) -> GraphModule:
    """Convert a calibrated or trained model: stock ``convert_pt2e`` on a copy, and a proof.

    Args:
        prepared: Calibrated; it is not changed.
        check: Compare the converted model with the prepared one on the first batch of `calibrate`
            or `quantize`. Both compute in float on the same grids.

    Returns:
        The graph with stock quantize and dequantize nodes, ready for `lower`.

    Raises:
        ValueError: the converted model computes something else; the text names the first layer
            that differs.
    """
    call = inputs_at_hand(prepared) if check else None
    converted: GraphModule = convert_pt2e(copy.deepcopy(prepared))  # it changes what it is given
    keep_inputs(converted, None)
    if call is None:
        return converted
    source = student_side("the prepared model", prepared)
    target = other_side("the converted model", converted, prepared)
    gap = difference(source, target, call, SAME_DB, lambda: noise_of(prepared, call))
    if gap is not None:
        raise refusal(source, target, gap, _ADVICE)
    return converted


# ---- Lowering to int8 kernels on x86, checked ----------------------------------------------------

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
