"""Brevitas's post-training quantization (https://github.com/Xilinx/brevitas).

The functions of its ImageNet example, which is its documented way. plain: BatchNorm merged,
percentile ranges. best: GPTQ on the weights and bias correction, as its README's best rows have.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from brevitas.graph.quantize import preprocess_for_quantize
from brevitas_examples.imagenet_classification.ptq.ptq_common import (
    apply_bias_correction,
    apply_gptq,
    calibrate,
    quantize_model,
)
from torch import nn

from benchmarks.graph_modules import slice_of
from benchmarks.peers.base import PeerRequest, PeerResult, layer_sizes


def quantize(request: PeerRequest) -> PeerResult:
    """Preprocess, quantize, calibrate, and with ``best`` GPTQ and bias correction."""
    best = request.recipe == "best"
    model = preprocess_for_quantize(request.model.eval(), relu6_to_relu=False, equalize_iters=0)
    _plain_slices(model)
    bounded = _bounded(model)
    quantized: Any = quantize_model(
        model,
        backend="fx",
        weight_bit_width=request.weight_bits,
        act_bit_width=request.activation_bits,
        bias_bit_width=None,
        weight_quant_granularity="per_channel",
        act_quant_percentile=99.999,
        act_quant_type="asym",
        scale_factor_type="float_scale",
        quant_format="int",
        weight_quant_type="sym",
        layerwise_first_last_bit_width=request.weight_bits,
    )
    batches = [(part, torch.zeros(len(part))) for part in request.calibration.split(request.batch)]
    with torch.no_grad():
        quantized(request.calibration[: request.batch])
    calibrate(batches, quantized)
    if best:
        apply_gptq(batches, quantized, act_order=True)
        apply_bias_correction(batches, quantized)
    return PeerResult(
        quantized.eval(),
        layer_sizes(quantized, request.weight_bits),
        notes=[
            "GPTQ with activation order, bias correction" if best else "99.999 percentile",
            *(["bounded at 6 before each QuantReLU, which has no bound"] if bounded else []),
        ],
        protocol={
            "first_last": "as all layers, the network's input too",
            "residual_adds": "quantized",
        },
    )


def _plain_slices(model: Any) -> None:
    """Slices of a quantized tensor are taken from its values: Brevitas has no slices of its own."""
    for node in model.graph.nodes:
        if node.op == "call_function" and node.target in (operator.getitem, slice_of):
            node.target = take
    model.recompile()


def _bounded(model: Any) -> int:
    """ReLU6 becomes a QuantReLU in Brevitas: its bound is put before it. How many there are."""
    names = {name for name, module in model.named_modules() if isinstance(module, nn.ReLU6)}
    found = [n for n in model.graph.nodes if n.op == "call_module" and n.target in names]
    for node in found:
        with model.graph.inserting_before(node):
            cut = model.graph.call_function(at_most_six, (node.args[0],))
        node.args = (cut,)
    model.recompile()
    return len(found)


def at_most_six(x: Any) -> Any:
    """``min(x, 6)`` of a tensor, quantized or not."""
    return values_of(x).clamp(max=6.0)


def take(x: Any, index: Any) -> Any:
    """``x[index]`` of a tensor, quantized or not, or of a tuple."""
    return values_of(x)[index]


def values_of(x: Any) -> Any:
    """The values of one of Brevitas's quantized tensors; anything else as it is."""
    return x.value if hasattr(x, "scale") and hasattr(x, "value") else x
