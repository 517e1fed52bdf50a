"""Predicted seconds of methods: the model's own steps are timed here, and counted for each method.

A prediction is a sum over what a method does: steps on images, choosing levels, passes over the
calibration images, rounding with error feedback, reconstruction. The unit costs are measured on the
model on this machine (a second or so); how many units there are follows from the settings of
`zaq-quantize run`, and a few factors were fitted once, see `FITTED`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zaq_plugin.image_counts import TRAINING_IMAGES
from zaq_plugin.layers import channel_axis
from zaq_plugin.pwlq import spec_from_name
from zaq_plugin.strategies.zaq import ZAQ, ZeroShot
from zaq_plugin.zero_shot import (
    DistillOptions,
    ImageFormat,
    ReconstructOptions,
    ZeroShotConfig,
    distill_images,
)
from zaq_plugin.zero_shot.statistics import batch_norms
from zaq_timm.zoo.settings import Settings

METHODS = ("rq", "dfq", "pwlq", "pwlq+gptq", "zaq")
"""What is predicted: a method of each kind that a run does without data."""

ENOUGH = 0.2
"""A step of so many seconds is no matter of calls: its time is that of its images."""


@dataclass(frozen=True)
class Factors:
    """What is not measured on the model.

    Attributes:
        column: One column of error feedback, in calls of a small operator.
        fed: One weight of error feedback, in elements of a large operator.
        cubic: A layer's second moments, in Cholesky factors of its size.
        block: A step of reconstruction, in steps of image making.
        learned: One weight and step of reconstruction, in elements of a large operator.
    """

    column: float
    fed: float
    cubic: float
    block: float
    learned: float


FITTED = Factors(column=110, fed=12_700, cubic=3.3, block=4.6, learned=220)
"""By DigitsResNet, ResNet-18 at 32 pixels and MobileNetV2 0.5 at 64.

Of the last the training (`block`, `learned`) was not timed.
"""


@dataclass(frozen=True)
class Line:
    """Seconds that grow with the images of a batch: ``fixed + each * images``."""

    fixed: float
    each: float

    def at(self, images: int) -> float:
        """Seconds of one batch of so many images."""
        return self.fixed + self.each * images


@dataclass(frozen=True)
class Costs:
    """What the model's steps cost on this machine, in seconds.

    Attributes:
        step: One step of image making: forwards, backwards, BatchNorm statistics. None where there
            is no BatchNorm, and images are made at once.
        forward: The float model.
        student: The simulated one, activations not quantized yet.
        levels: Choosing the levels of all weights.
        call: A small operator.
        element: A large elementwise operator, for each element.
        cholesky: A Cholesky factor, for each cubed column.
        widths: Inputs of one output channel, for every layer.
        weights: How many.
    """

    step: Line | None
    forward: Line
    student: Line
    levels: float
    call: float
    element: float
    cholesky: float
    widths: tuple[int, ...]
    weights: int


def measure_costs(model: nn.Module, student: nn.Module, shape: Any, levels: float) -> Costs:
    """Times the model's steps, a second or so for small networks.

    Args:
        model: Float, in evaluation mode, with its BatchNorms.
        student: From `zaq_plugin.ptq.simulate`.
        shape: Of its images, (channels, height, width).
        levels: Seconds that choosing the levels has taken already.
    """
    images = ImageFormat.of(shape)

    def step(count: int) -> None:
        options = DistillOptions(steps=1, start="noise", batch_size=count)
        distill_images(model, count, images, options=options)

    large = torch.zeros(2**20)

    def runs(network: nn.Module) -> Callable[[int], None]:
        def run(count: int) -> None:
            with torch.no_grad():
                network(torch.zeros(count, *images.shape))

        return run

    return Costs(
        _line(step) if batch_norms(model) else None,
        _line(runs(model)),
        _line(runs(student)),
        levels,
        _seconds(_small, 500) / 500,
        _seconds(lambda times: [large.round_() for _ in range(times)], 8) / 2**23,
        _seconds(_cholesky, 512) / 512**3,
        tuple(width for _, width in _layers(student)),
        sum(count for count, _ in _layers(student)),
    )


def _small(times: int) -> None:
    x = torch.zeros(16)
    for _ in range(times):
        x = x + 1


def _cholesky(size: int) -> None:
    torch.linalg.cholesky(torch.eye(size))


def _line(run: Callable[[int], object]) -> Line:
    """Through two sizes of batch; through the origin where one is slow already."""
    few = _seconds(run, 2)
    if few > ENOUGH:
        return Line(0.0, few / 2)
    more = _seconds(run, 16)
    each = max(0.0, (more - few) / 14)
    return Line(max(0.0, few - 2 * each), each)


def _seconds(run: Callable[[int], object], size: int) -> float:
    """The shortest of up to four times; what is slow is not done again."""
    best, spent = float("inf"), 0.0
    for _ in range(4):
        begin = time.perf_counter()
        run(size)
        seconds = time.perf_counter() - begin
        best, spent = min(best, seconds), spent + seconds
        if spent > ENOUGH:
            break
    return best


def _layers(student: nn.Module) -> list[tuple[int, int]]:
    """Weights, and inputs of one output channel, of every quantized layer."""
    sizes = []
    for module in student.modules():
        weight = getattr(module, "weight", None)
        if hasattr(module, "parametrizations") and isinstance(weight, torch.Tensor):
            count = weight.numel()
            sizes.append((count, count // weight.shape[channel_axis(module)]))
    return sizes


def predict_seconds(
    costs: Costs, settings: Settings, methods: Sequence[str] = METHODS, factors: Factors = FITTED
) -> dict[str, float]:
    """Method to the seconds of ``zaq-quantize run --strategy METHOD`` once the model is loaded.

    Args:
        costs: Of the model's steps.
        settings: Of the run: batch, images, steps.
        methods: Of `METHODS`.
        factors: See `Factors`.
    """
    return {name: _method(name, costs, settings, factors) for name in methods}


def _method(name: str, costs: Costs, settings: Settings, factors: Factors) -> float:
    trains = name == "zaq"
    count = max(settings.calibration_images, TRAINING_IMAGES if trains else 0)
    batch, tests = settings.batch, settings.test_images
    total = _images(costs, settings, count + tests)
    total += 2 * (_passes(costs.forward, tests, batch) + _passes(costs.student, tests, batch))
    calibration = _passes(costs.student, count, batch)
    both = calibration + _passes(costs.forward, count, batch)
    if name == "rq":
        return total + calibration + 0.2 * costs.levels
    if name == "dfq":
        return total + both + 0.2 * costs.levels
    total += costs.levels + calibration
    if name == "pwlq":
        return total + both
    total += both + _feedback(costs, factors)
    if not trains:
        return total
    config = ZeroShotConfig()
    options: ReconstructOptions = config.reconstruction.options()
    size = min(batch, options.batch_size)
    line = costs.step or costs.forward
    each = factors.block * line.at(size) + factors.learned * costs.element * costs.weights
    bits = spec_from_name(settings.weights).stored_bits
    stage = next(stage for stage in ZAQ.stages if isinstance(stage, ZeroShot))
    return total + stage.iterations_at(bits, settings.activations) * each


def _images(costs: Costs, settings: Settings, count: int) -> float:
    if costs.step is None:
        return 0.0
    batches = -(-count // settings.batch)
    return batches * settings.distill_steps * costs.step.at(settings.batch)


def _passes(line: Line, count: int, batch: int) -> float:
    return -(-count // batch) * line.at(min(batch, count))


def _feedback(costs: Costs, factors: Factors) -> float:
    columns = factors.column * costs.call * sum(costs.widths)
    fed = factors.fed * costs.element * costs.weights
    return columns + fed + factors.cubic * costs.cholesky * float(sum(w**3 for w in costs.widths))
