"""torchao's PT2E with its X86 quantizer (https://github.com/pytorch/ao).

plain: min-max observers for weights and activations. best: the quantizer's own default
configuration, which observes activations by histograms. Widths below eight are the same quantizer
with narrower ranges; the converted graph computes them as int8 reference operators.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torchao.quantization.pt2e import HistogramObserver, MinMaxObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationSpec
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

from benchmarks.peers.base import PeerRequest, PeerResult, layer_sizes


def quantize(request: PeerRequest) -> PeerResult:
    """Export, prepare, calibrate, convert."""
    sizes = layer_sizes(request.model, request.weight_bits)
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    # The X86 quantizer finds layers in strict exports only.
    program = torch.export.export(
        request.model, (request.example,), dynamic_shapes=shapes, strict=True
    )
    quantizer = X86InductorQuantizer()
    quantizer.set_global(_configuration(request))
    prepared = prepare_pt2e(program.module(), quantizer)
    with torch.no_grad():
        for batch in request.calibration.split(request.batch):
            if len(batch) >= 2:
                prepared(batch)
    converted = convert_pt2e(prepared)
    quantized, left = _split(converted, sizes)
    observers = "min-max observers" if request.recipe == "plain" else "histogram observers"
    return PeerResult(
        converted,
        quantized,
        float_layers=left,
        notes=[f"PT2E, X86InductorQuantizer, {observers}"],
        protocol={"first_last": "as all layers, the network's input too"},
    )


def _configuration(request: PeerRequest) -> Any:
    """The default configuration with the request's widths."""
    config = get_default_x86_inductor_quantization_config()
    plain = request.recipe == "plain"
    observer = MinMaxObserver if plain else HistogramObserver
    high = 2 ** (request.weight_bits - 1) - 1
    weight = QuantizationSpec(
        torch.int8,
        PerChannelMinMaxObserver.with_args(eps=2**-12),
        -high - (request.weight_bits == 8),
        high,
        torch.per_channel_symmetric,
        ch_axis=0,
    )
    activation = QuantizationSpec(
        torch.uint8,
        observer.with_args(eps=2**-12),
        0,
        2**request.activation_bits - 1,
        torch.per_tensor_affine,
    )
    return replace(config, input_activation=activation, weight=weight)


def _split(
    converted: nn.Module, sizes: dict[str, tuple[int, int, int]]
) -> tuple[dict[str, tuple[int, int, int]], list[str]]:
    """Which layers got an int8 weight: by the shapes of the graph's dequantized weights."""
    graph: Any = converted
    operators = ("conv2d", "conv_transpose2d", "linear")
    done = total = 0
    for node in graph.graph.nodes:
        if node.op != "call_function" or not any(o in str(node.target) for o in operators):
            continue
        total += 1
        done += "dequantize" in str(node.args[1])
    names = list(sizes)
    if done == total:
        return sizes, []
    layers = _in_order(graph, operators, names)
    return {n: sizes[n] for n in names if n in layers}, [n for n in names if n not in layers]


def _in_order(graph: Any, operators: tuple[str, ...], names: list[str]) -> set[str]:
    """Names of the layers whose operator takes a dequantized weight, in the graph's order."""
    nodes = [
        node
        for node in graph.graph.nodes
        if node.op == "call_function" and any(o in str(node.target) for o in operators)
    ]
    flags = ["dequantize" in str(node.args[1]) for node in nodes]
    return {name for name, flag in zip(names, flags, strict=False) if flag}
