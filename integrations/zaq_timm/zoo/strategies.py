"""A model quantized by one of `zaq_plugin.strategies`, in whatever host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from zaq_plugin.image_counts import TRAINING_IMAGES
from zaq_plugin.pwlq import QuantSpec
from zaq_plugin.report import Audit
from zaq_plugin.strategies import Request, Strategy, apply
from zaq_plugin.student.host import find_host
from zaq_timm.zoo.errors import LeftOut
from zaq_timm.zoo.hosts import AUTO, Converted
from zaq_timm.zoo.model_job import Job
from zaq_timm.zoo.settings import Settings
from zaq_timm.zoo.strategy_checks import SIMULATED

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
    request = Request(
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
    applied = apply(strategy, job.loaded.model, request)
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
