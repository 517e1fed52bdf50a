"""The host's conversion, proved on the batch at hand."""

from __future__ import annotations

import copy

from torch.fx import GraphModule
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
