"""What every host of the demo hands back, and the one that needs no other tool: simulation.

A host takes a float model with BatchNorm folded and hands back the quantized one. Those that
convert to int8 are in `zaq_timm.converted`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from zaq_plugin.fake_quantize import ActivationFakeQuantize
from zaq_plugin.ptq import audit, calibrate, correct_bias, quantized_tensors, simulate
from zaq_plugin.pwlq import PWLQTensor, QuantSpec
from zaq_plugin.report import Audit
from zaq_plugin.student.fake_quantizers import input_quantizer


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
