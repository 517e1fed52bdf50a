"""Brevitas's post-training quantization (https://github.com/Xilinx/brevitas).

The functions of its ImageNet example, which is its documented way: BatchNorm merged, cross-layer
equalization, percentile ranges (plain); GPTQ on the weights and bias correction on top, as its best
published configurations have (best). Its ``layerwise`` backend quantizes the inputs and weights of
layers, as we do; its ``fx`` backend also quantizes what operators between them hand on, and refuses
networks whose additions and concatenations it cannot align.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from brevitas.fx.brevitas_tracer import symbolic_trace
from brevitas.graph.fixed_point import MergeBatchNorm
from brevitas.graph.quantize import layerwise_quantize, preprocess_for_quantize
from brevitas_examples.imagenet_classification.ptq.ptq_common import (
    apply_bias_correction,
    apply_gptq,
    calibrate,
    create_quant_maps,
)
from dependencies import value
from torch import nn

from benchmarks.peers.base import PeerRequest, PeerResult, layer_sizes

EQUALIZATIONS = 20
"""Iterations of cross-layer equalization, the example's default."""


def quantize(request: PeerRequest) -> PeerResult:
    """Preprocess, quantize, calibrate, and with ``best`` GPTQ and bias correction."""
    best = request.recipe == "best"
    model, equalized = _preprocess(request.model.eval())
    quantized: Any = layerwise_quantize(model, compute_layer_map=_layer_map(request))
    batches = [(part, torch.zeros(len(part))) for part in request.calibration.split(request.batch)]
    with torch.no_grad():
        quantized(request.calibration[: request.batch])
    calibrate(batches, quantized)
    if best:
        apply_gptq(batches, quantized, act_order=True)
        apply_bias_correction(batches, quantized)
    recipe = "GPTQ with activation order, bias correction" if best else "99.999 percentile"
    return PeerResult(
        quantized.eval(),
        layer_sizes(quantized, request.weight_bits),
        notes=[f"{equalized}, {recipe}, layerwise backend"],
        protocol={"residual_adds": "float"},
    )


def _preprocess(model: nn.Module) -> tuple[nn.Module, str]:
    """BatchNorm merged and layers equalized; and in words what was done.

    The tool's search for what to equalize fails on networks that slice what they equalize; they get
    the merging alone.
    """
    try:
        done = preprocess_for_quantize(
            copy.deepcopy(model), relu6_to_relu=False, equalize_iters=EQUALIZATIONS
        )
    except KeyError as error:
        return MergeBatchNorm().apply(symbolic_trace(model)), f"no equalization (KeyError: {error})"
    return done, f"{EQUALIZATIONS} iterations of equalization"


def _layer_map(request: PeerRequest) -> dict[Any, Any]:
    """What becomes of each kind of layer: the request's widths, the network's input at 8 bits."""

    @value
    def input_bits(module: Any) -> int:
        return 8 if getattr(module, "in_channels", 0) == 3 else request.activation_bits

    _, layerwise, _, _ = create_quant_maps(
        dtype=torch.float32,
        bias_bit_width=None,
        weight_bit_width=request.weight_bits,
        weight_param_method="stats",
        weight_scale_type="float_scale",
        weight_quant_type="sym",
        weight_quant_granularity="per_channel",
        weight_narrow_range=False,
        weight_quant_format="int",
        act_quant_format="int",
        act_bit_width=input_bits,
        act_scale_type="float_scale",
        act_scale_computation_type="static",
        act_param_method="stats",
        act_quant_type="asym",
        act_quant_granularity="per_tensor",
        act_quant_percentile=99.999,
    )
    return dict(layerwise)
