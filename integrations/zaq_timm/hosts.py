"""What every host of the demo hands back, the hosts themselves, and what is measured of it.

A host takes a float model with BatchNorm folded and hands back the quantized one. Levels of those
that convert to int8 are the simulation's, bit for bit; only activations between layers round
differently.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zaq_plugin.fake_quantize import ActivationFakeQuantize
from zaq_plugin.ptq import audit, calibrate, correct_bias, quantized_tensors, simulate
from zaq_plugin.pwlq import PWLQTensor, QuantSpec, quantize
from zaq_plugin.report import Audit
from zaq_plugin.student.fake_quantizers import input_quantizer
from zaq_plugin.student.host import Assignment, find_host


@dataclass(frozen=True)
class Quantized:
    """What a host hands back.

    Attributes:
        model: the quantized model, called like the float one.
        tensors: layer name to quantized weight.
        layers: what was quantized, and what was not and why.
        ranges: layer name to the range `(lo, hi)` of its input's grid.
    """

    model: nn.Module
    tensors: Mapping[str, PWLQTensor]
    layers: Audit
    ranges: Mapping[str, tuple[float, float]]


Host = Callable[[nn.Module, QuantSpec, int, Sequence[Tensor]], Quantized]


def simulated(
    model: nn.Module,
    weights: QuantSpec,
    activations: int,
    batches: Sequence[Tensor],
    per_tensor: bool = False,
) -> Quantized:
    """Every layer computes with grid values in float; biases corrected from activations.

    Args:
        model: float, in evaluation mode, BatchNorm folded; it is not touched.
        weights: the grid of all weights.
        activations: the width of the layers' inputs (the network's own input stays at 8 bits).
        batches: images that set ranges and biases.
        per_tensor: one grid a weight tensor instead of one per output channel.
    """
    student = simulate(
        model,
        weights,
        activations,
        depthwise="as-told",
        example_inputs=(batches[0],),
        per_tensor=per_tensor,
    )
    calibrate(student, batches)
    correct_bias(student, batches)
    return Quantized(student, quantized_tensors(student), audit(student), input_ranges(student))


def input_ranges(student: nn.Module) -> dict[str, tuple[float, float]]:
    """The range of each layer's input grid, from its step and zero point."""
    ranges = {}
    for name, module in student.named_modules():
        watcher = input_quantizer(module)
        if isinstance(watcher, ActivationFakeQuantize):
            step, zero = float(watcher.scale), int(watcher.zero_point)
            low, high = watcher.quant_min, watcher.quant_max
            ranges[name] = ((low - zero) * step, (high - zero) * step)
    return ranges


def through(name: str) -> Host:
    """The way through a host: prepared, calibrated, biases corrected, converted.

    Args:
        name: Of a host that is installed, see `zaq_plugin.student.host.host_names`.
    """

    def convert(
        model: nn.Module, weights: QuantSpec, activations: int, batches: Sequence[Tensor]
    ) -> Quantized:
        host = find_host(name)
        prepared = host.prepare(model, (batches[0],), Assignment(weights, activations)).model
        calibrate(prepared, batches)
        correct_bias(prepared, batches)
        converted = host.convert(prepared)
        return _quantized(model, weights, converted, host.audit(converted))

    return convert


def _quantized(model: nn.Module, spec: QuantSpec, converted: nn.Module, layers: Audit) -> Quantized:
    weights = dict(model.named_parameters())
    tensors = {
        record.name: quantize(weights[f"{record.name}.weight"].detach(), spec)
        for record in layers.quantized
    }
    return Quantized(converted, tensors, layers, {})


CONVERTED: dict[str, Host] = {name: through(name) for name in ("fx", "pt2e")}
"""Name to function; the command's `--host` offers what is here."""


def percent(hits: Tensor) -> float:
    """The share of true values, in percent."""
    return 100.0 * int(hits.sum()) / hits.numel()


def sqnr(model: nn.Module, result: Quantized) -> float:
    """Signal to quantization noise of all quantized weights together, in dB."""
    signal = noise = 0.0
    for name, tensor in result.tensors.items():
        weight = model.get_submodule(name).weight.detach().double()  # type: ignore[operator]
        signal += weight.square().sum().item()
        noise += (tensor.dequantize().double() - weight).square().sum().item()
    return 10 * torch.tensor(signal / noise, dtype=torch.float64).log10().item()


def float_bytes(model: nn.Module, result: Quantized) -> int:
    """Bytes of the parameters that stay float: biases (skipped weights are in the audit)."""
    recorded = {f"{record.name}.weight" for record in result.layers}
    return 4 * sum(p.numel() for name, p in model.named_parameters() if name not in recorded)
