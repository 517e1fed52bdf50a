"""How fast and how thrifty a network would be on the MAC-array accelerator of the PWLQ paper.

Fang et al. (ECCV 2020, section 4.6) simulate ResNet-50 on an accelerator of which they publish six
ratios. This model has what such a machine is made of: an array of rows x columns multipliers, which
computes one layer while the next one's weights arrive from memory, so that a layer takes the longer
of the two times. Two numbers that the paper does not give, the clock and the energy of an access to
on-chip memory, are fitted to its uniform 4- and 8-bit rows (`fit`); its PWLQ row is then predicted:

    | against uniform 8 bits | paper | model | error |
    |---|---|---|---|
    | PWLQ 4b MAC/5b stored, speed-up at 8 GB/s | 1.46 | 1.45 | -0.6 % |
    | PWLQ 4b MAC/5b stored, speed-up at 16 GB/s | 1.22 | 1.23 | +0.5 % |
    | PWLQ 4b MAC/5b stored, energy | 0.78 | 0.79 | +1.4 % |

Ask it for any model and format::

    work = workload(model, (images[:1],))
    print(estimate(work, PWLQSpec(bits=4)).seconds, estimate(work, PWLQSpec(bits=4)).joules)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin.layers import groups_of, hooked
from zaq_plugin.pwlq import PWLQSpec, QuantSpec, UniformSpec

TAIL_SHARE = 0.1
"""Share of weights in the tail; the paper counts about nine in ten in the center."""

_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True)
class LayerWork:
    """What one layer asks for, for one call of the model.

    Attributes:
        name: The layer.
        groups: Independent products it consists of (of a grouped convolution).
        reduction: Length of a dot product.
        outputs: Output channels of a group.
        positions: How often the weights are used: batch times pixels.
    """

    name: str
    groups: int
    reduction: int
    outputs: int
    positions: int

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.groups * self.reduction * self.outputs

    @property
    def macs(self) -> int:
        """Multiplications."""
        return self.weights * self.positions


@dataclass(frozen=True)
class Accelerator:
    """A MAC array with on-chip memory for activations; weights come from outside.

    Energies are those of a 45 nm process at 0.9 V (Horowitz, "Computing's energy problem", ISSCC
    2014): an 8-bit multiplication 0.2 pJ, a 32-bit addition 0.1 pJ, 64 bits from a memory of 32 KB
    20 pJ and of 1 MB 100 pJ, 64 bits from DRAM 1.3 to 2.6 nJ.

    Attributes:
        rows: Multipliers along a dot product.
        columns: Output channels computed side by side.
        clock: Hertz; fitted.
        bandwidth: Bytes a second from DRAM.
        multiply_pj: One 8 x 8 bit multiplication; others scale with the product of the widths.
        add_pj: One 32-bit addition.
        on_chip_pj: One byte of on-chip memory, read or written; fitted. Horowitz' figures span 2.5
            to 12.5.
        dram_pj: One byte of DRAM.

    Raises:
        ValueError: a number that is not positive.
    """

    rows: int = 64
    columns: int = 64
    clock: float = 7.72e8
    bandwidth: float = 8e9
    multiply_pj: float = 0.2
    add_pj: float = 0.1
    on_chip_pj: float = 6.59
    dram_pj: float = 1300 / 8

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not value > 0 or not math.isfinite(value):
                raise ValueError(f"Accelerator: {name} must be positive; got {value!r}.")


@dataclass(frozen=True)
class Estimate:
    """Time and energy of one call.

    Attributes:
        seconds: Time.
        joules: Energy.
        memory_bound: Share of the time spent in layers that wait for their weights.
        weight_bytes: Bytes of weights from DRAM.
    """

    seconds: float
    joules: float
    memory_bound: float
    weight_bytes: float


PAPER = Accelerator()
"""The accelerator fitted to the paper's uniform rows; see `fit`."""

PUBLISHED = {
    "energy": {"uniform 4": 0.73, "PWLQ 4": 0.78},
    "speed-up at 8 GB/s": {"uniform 4": 1.73, "PWLQ 4": 1.46},
    "speed-up at 16 GB/s": {"uniform 4": 1.32, "PWLQ 4": 1.22},
}
"""ResNet-50 against uniform 8 bits, as published; activations have 8 bits."""


def workload(model: nn.Module, example_inputs: Sequence[Any]) -> list[LayerWork]:
    """The convolutions and linear layers that one call of a model runs, one entry a call.

    Args:
        model: Any module whose weighted layers are modules; it is run once, in evaluation mode.
        example_inputs: What to call it with; the batch counts.

    Raises:
        ValueError: no such layer was called.
    """
    work: list[LayerWork] = []

    def record(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(layer: nn.Module, _: tuple[Any, ...], output: Any) -> None:
            weight, groups = layer.weight, groups_of(layer)
            if not isinstance(weight, Tensor) or not isinstance(output, Tensor):
                return
            channels = weight.shape[0]
            reduction, positions = weight[0].numel(), output.numel() // channels
            work.append(LayerWork(name, groups, reduction, channels // groups, positions))

        return hook

    handles = [
        module.register_forward_hook(record(name))
        for name, module in model.named_modules()
        if isinstance(module, _WEIGHTED)
    ]
    training = model.training
    try:
        with hooked(handles), torch.no_grad():
            model.eval()(*example_inputs)
    finally:
        model.train(training)
    if not work:
        raise ValueError(
            f"{type(model).__name__}: no convolution or linear layer was called; the hardware "
            "model knows no other work."
        )
    return work


def estimate(
    work: Iterable[LayerWork],
    weights: QuantSpec,
    activations: int = 8,
    accelerator: Accelerator = PAPER,
) -> Estimate:
    """Time and energy of a network whose weights have a format.

    A layer takes the longer of its multiplications (one a cycle and multiplier; the array is filled
    in whole tiles) and of its weights' way from DRAM, at their stored bits. Energy is spent on
    multiplications (MAC bits times activation bits), accumulations, on-chip traffic (activations
    once per tile of columns, partial sums of 32 bits once per tile of rows) and DRAM.

    Args:
        work: From `workload`.
        weights: The format; PWLQ pays for its stored bits and for a third accumulator, which adds
            the activations that meet a tail weight.
        activations: Their bits, 1 to 16.
        accelerator: The machine.

    Raises:
        ValueError: activations out of range; no work.
        TypeError: weights is no format.
    """
    if not isinstance(weights, QuantSpec):
        raise TypeError(f"weights must be a format such as a PWLQSpec; got {weights!r}.")
    if isinstance(activations, bool) or not 1 <= activations <= 16:
        raise ValueError(f"activations must have 1 to 16 bits; got {activations!r}.")
    machine = accelerator
    seconds = joules = waiting = moved = 0.0
    tail = TAIL_SHARE if weights.has_tail else 0.0
    multiply = machine.multiply_pj * weights.mac_bits * activations / 64
    for layer in work:
        tiles_in = math.ceil(layer.reduction / machine.rows)
        tiles_out = math.ceil(layer.outputs / machine.columns)
        calls = layer.groups * layer.positions
        compute = calls * tiles_in * tiles_out / machine.clock
        size = layer.weights * weights.stored_bits / 8
        memory = size / machine.bandwidth
        seconds += max(compute, memory)
        waiting += memory if memory > compute else 0.0
        moved += size
        on_chip = calls * tiles_out * layer.reduction * activations / 8
        on_chip += calls * tiles_in * layer.outputs * 2 * 4
        arithmetic = layer.macs * (multiply + machine.add_pj * (1 + tail))
        spent = arithmetic + on_chip * machine.on_chip_pj + size * machine.dram_pj
        joules += spent * 1e-12
    if seconds == 0:
        raise ValueError("no work was given; workload(model, inputs) measures it.")
    return Estimate(seconds, joules, waiting / seconds, moved)


def speed_up(work: Sequence[LayerWork], weights: QuantSpec, accelerator: Accelerator) -> float:
    """How many times faster than uniform 8 bits."""
    whole = estimate(work, UniformSpec(8), accelerator=accelerator)
    return whole.seconds / estimate(work, weights, accelerator=accelerator).seconds


def energy_ratio(work: Sequence[LayerWork], weights: QuantSpec, accelerator: Accelerator) -> float:
    """Energy as a share of uniform 8 bits'."""
    whole = estimate(work, UniformSpec(8), accelerator=accelerator)
    return estimate(work, weights, accelerator=accelerator).joules / whole.joules


def fit(work: Sequence[LayerWork], start: Accelerator = PAPER) -> Accelerator:
    """The clock and the on-chip energy that reproduce the paper's uniform 4-bit row best.

    Args:
        work: ResNet-50's, for one image of 224 x 224.
        start: Everything else.
    """
    narrow = UniformSpec(4)

    def speed_error(clock: float) -> float:
        total = 0.0
        for bandwidth in (8, 16):
            machine = dataclasses.replace(start, clock=clock, bandwidth=bandwidth * 1e9)
            published = PUBLISHED[f"speed-up at {bandwidth} GB/s"]["uniform 4"]
            total += (speed_up(work, narrow, machine) / published - 1) ** 2
        return total

    clock = _least(speed_error, 1e8, 1e10)

    def energy_error(on_chip: float) -> float:
        machine = dataclasses.replace(start, clock=clock, on_chip_pj=on_chip)
        return (energy_ratio(work, narrow, machine) / PUBLISHED["energy"]["uniform 4"] - 1) ** 2

    return dataclasses.replace(start, clock=clock, on_chip_pj=_least(energy_error, 0.1, 100.0))


def _least(error: Callable[[float], float], low: float, high: float) -> float:
    """The argument of least error between two positive numbers, by a grid that closes in."""
    best = low
    for _ in range(4):
        ratio = (high / low) ** (1 / 60)
        grid = [low * ratio**i for i in range(61)]
        best = min(grid, key=error)
        low, high = best / ratio, best * ratio
    return best


def predictions(
    work: Sequence[LayerWork], machine: Accelerator = PAPER
) -> dict[str, tuple[float, float]]:
    """(published, predicted) of each ratio of the paper's PWLQ row, which nothing was fitted to."""
    spec = PWLQSpec(bits=4)
    ratios = {
        f"speed-up at {b} GB/s": speed_up(
            work, spec, dataclasses.replace(machine, bandwidth=b * 1e9)
        )
        for b in (8, 16)
    }
    ratios["energy"] = energy_ratio(work, spec, machine)
    return {name: (PUBLISHED[name]["PWLQ 4"], value) for name, value in ratios.items()}
