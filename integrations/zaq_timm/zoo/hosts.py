"""From a float model to a converted one: in whatever host, by its own way or by a strategy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from zaq_plugin import strategies
from zaq_plugin.errors import in_short
from zaq_plugin.image_counts import TRAINING_IMAGES
from zaq_plugin.layers import is_depthwise, weight_of
from zaq_plugin.ptq import calibrate, correct_bias
from zaq_plugin.ptq.plan import cheaper_depthwise
from zaq_plugin.pwlq import QuantSpec
from zaq_plugin.report import Audit
from zaq_plugin.strategies import Strategy
from zaq_plugin.student.host import Assignment, find_host
from zaq_plugin.student.proof import require_float_function
from zaq_plugin.zero_shot import FinetuneResult
from zaq_timm.zoo.errors import LeftOut, is_out_of_memory
from zaq_timm.zoo.model_job import Job
from zaq_timm.zoo.settings import Settings
from zaq_timm.zoo.strategy_checks import SIMULATED

Correct = Callable[..., object]
Finetune = Callable[[nn.Module, Correct | None], FinetuneResult]
"""Trains a student; told how its host corrects biases, None where that is done already."""


@dataclass(frozen=True)
class Request:
    """What a host is asked for.

    Attributes:
        model: float, in evaluation mode; it is not touched.
        weights: grid of the weights.
        activations: bits of the layers' inputs.
        overrides: layer name to its own grid.
        calibration: (n, C, H, W) images for ranges and biases.
        batch: so many at a time.
        finetune: trains a student that was prepared for training; None calibrates only.
    """

    model: nn.Module
    weights: QuantSpec
    activations: int
    overrides: Mapping[str, QuantSpec]
    calibration: Tensor
    batch: int
    finetune: Finetune | None = None

    @property
    def example(self) -> Tensor:
        """A batch of images."""
        return self.calibration[: self.batch].clone()

    @property
    def batches(self) -> list[Tensor]:
        """The calibration images, `batch` at a time."""
        return list(self.calibration.split(self.batch))

    def pairs(self) -> dict[Any, Any]:
        """The overrides with activations, as the hosts take them."""
        return {name: (spec, self.activations) for name, spec in self.overrides.items()}


@dataclass
class Converted:
    """What a host hands back.

    Attributes:
        model: called like the float one, with batches of any size.
        layers: what was quantized, and what was not and why.
        fixed_batch: the only batch size that it takes, where the host could not do better.
        finetuned: how training went.
        notes: what a reader should know.
        ranges: images that give 8-bit ranges, in an exported file, to what it leaves in float
            between layers, so that layers run on integer kernels; None exports it as it is.
    """

    model: nn.Module
    layers: Audit
    fixed_batch: int | None = None
    finetuned: FinetuneResult | None = None
    notes: list[str] = field(default_factory=list)
    ranges: Tensor | None = None


def on_host(name: str, request: Request) -> Converted:
    """The whole way through one host.

    Raises:
        LeftOut: the host cannot do it; the text says why.
        ValueError: the host cannot follow the model, or has nothing to quantize.
    """
    host = find_host(name)
    assignment = Assignment(request.weights, request.activations, request.pairs())
    reason = host.why_not(assignment)
    if reason is not None:
        raise LeftOut(reason)
    train = request.finetune is not None
    prepared = host.prepare(request.model, (request.example,), assignment, train=train)
    if prepared.fixed_batch is None:
        require_float_function(prepared.model, request.model, (request.example,))
    batches, result = request.batches, None
    if prepared.fixed_batch:
        size = prepared.fixed_batch
        batches = [b for b in request.calibration.split(size) if len(b) == size]
    if request.finetune is None:
        calibrate(prepared.model, batches)
        correct_bias(prepared.model, batches)
    else:
        result = request.finetune(prepared.model, correct_bias)
    converted = host.convert(prepared.model)
    return Converted(converted, host.audit(converted), prepared.fixed_batch, result, prepared.notes)


AUTO = ("pt2e", "fx")
"""What ``auto`` tries, in order."""


def convert(host: str, request: Request) -> tuple[str, Converted]:
    """Converts a model with the host asked for, or the first one of `AUTO` that can.

    Returns:
        The host's name, and what it made; under `AUTO` its notes say why others could not.

    Raises:
        LeftOut: none can; the text says why for each.
    """
    names = AUTO if host == "auto" else (host,)
    reasons: list[str] = []
    last: Exception | None = None
    for name in names:
        try:
            converted = on_host(name, request)
        except ImportError as error:
            reasons.append(f"{name}: {in_short(error)}")
            continue
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reasons.append(f"{name}: {in_short(error)}")
            last = error
            continue
        converted.notes = [f"{reason}" for reason in reasons] + converted.notes
        return name, converted
    raise LeftOut("; ".join(reasons)) from last


def depthwise_overrides(model: nn.Module, spec: QuantSpec) -> dict[str, QuantSpec]:
    """int8 for depthwise layers whose narrow codes and levels take more room than 8 bits."""
    overrides: dict[str, QuantSpec] = {}
    for name, module in model.named_modules():
        weight = weight_of(module)
        if not is_depthwise(module) or weight is None:
            continue
        cheaper, reason = cheaper_depthwise(module, weight, spec)
        if reason is not None:
            overrides[name] = cheaper
    return overrides


SHARED_RECIPE = "leaves"
"""Strategies with this recipe take the images that the run has made already."""


def hosts_for(settings: Settings) -> tuple[str, ...]:
    """The hosts that a strategy is tried in, in order."""
    if settings.simulates:
        return (SIMULATED,)
    return AUTO if settings.wanted_host == "auto" else (settings.wanted_host,)


def images_wanted(settings: Settings) -> int:
    """How many calibration images the run should make for the strategy."""
    strategy = settings.checked_strategy()
    if strategy.trains and strategy.recipe == SHARED_RECIPE:
        return max(settings.calibration_images, TRAINING_IMAGES)
    return settings.calibration_images


def convert_by_strategy(job: Job, overrides: Mapping[str, QuantSpec]) -> tuple[str, Converted]:
    """What a strategy makes of the model, with the audit of its layers.

    Raises:
        LeftOut: The strategy cannot do this model in any host asked for; the text says why.
    """
    settings = job.settings
    strategy = settings.checked_strategy()
    reasons: list[str] = []
    for name in hosts_for(settings):
        try:
            converted = _in_host(job, strategy, name, overrides)
        except (ValueError, ImportError) as error:
            reasons.append(f"{name}: {error}" if name != SIMULATED else str(error))
            continue
        converted.notes = converted.notes[:1] + reasons + converted.notes[1:]
        return name, converted
    raise LeftOut(f"strategy {settings.strategy}: {'; '.join(reasons)}")


def _in_host(
    job: Job, strategy: Strategy, name: str, overrides: Mapping[str, QuantSpec]
) -> Converted:
    settings, inputs, images = job.settings, job.loaded.inputs, job.images.calibration
    shared = images if strategy.recipe == SHARED_RECIPE else None
    own: dict[str, Any] = {} if shared is None else {"synthetic": shared}
    request = strategies.Request(
        weight_bits=job.spec.stored_bits,
        activation_bits=settings.activations,
        levels=job.spec.family,
        example_inputs=(images[:1].clone(),),
        mean=inputs.mean,
        std=inputs.std,
        seed=settings.seed,
        depthwise="as-told" if settings.depthwise == "as-told" else "int8",
        batch_size=max(2, settings.batch),
        synthetic_count=TRAINING_IMAGES if strategy.trains else max(2, settings.calibration_images),
        host=name,
        int8=settings.export != "none",
        overrides=dict(overrides) if settings.budget else {},
        **own,
    )
    applied = strategies.apply(strategy, job.loaded.model, request)
    notes = [f"strategy {applied.strategy}, ranges from {applied.data} images", *applied.notes]
    if applied.data == "none":
        notes[0] = f"strategy {applied.strategy}, without images"
    layers = Audit(applied.layers)
    if name == SIMULATED:
        return Converted(applied.model, layers, notes=notes, ranges=images)
    host = find_host(name)
    converted = host.convert(applied.model)
    layers = with_noise(host.audit(converted), layers)
    return Converted(converted, layers, applied.fixed_batch, notes=notes)


def with_noise(converted: Audit, planned: Audit) -> Audit:
    """A converted model's audit with the noise that the student's has, measured by float weights.

    A converted model knows its weights before rounding only as the strategy has left them.
    """
    by_name = {record.name: record for record in planned.quantized}
    return Audit(
        [
            replace(r, sqnr_db=by_name[r.name].sqnr_db) if r.quantized and r.name in by_name else r
            for r in converted.records
        ]
    )
