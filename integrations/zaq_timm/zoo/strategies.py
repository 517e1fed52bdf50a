"""A model quantized by one of `zaq_plugin.strategies`, in the place of a host."""

from __future__ import annotations

from typing import Any

from zaq_plugin.pwlq import PWLQSpec
from zaq_plugin.report import Audit
from zaq_plugin.strategies import Request, apply
from zaq_timm.zoo.errors import LeftOut
from zaq_timm.zoo.hosts import Converted
from zaq_timm.zoo.model_job import Job
from zaq_timm.zoo.settings import Settings

HOST = "simulated"
SHARED_RECIPE = "leaves"
"""Strategies with this recipe take the images that the run has made already."""
TRAINING_IMAGES = 384
"""So many images are made for strategies that learn something."""


def images_wanted(settings: Settings) -> int:
    """How many calibration images the run should make for the strategy."""
    strategy = settings.checked_strategy()
    if strategy.trains and strategy.recipe == SHARED_RECIPE:
        return max(settings.calibration_images, TRAINING_IMAGES)
    return settings.calibration_images


def convert_by_strategy(job: Job) -> tuple[str, Converted]:
    """The simulated student, with the audit of its layers.

    Raises:
        LeftOut: The strategy cannot do this model; the text says why.
    """
    settings, inputs, images = job.settings, job.loaded.inputs, job.images.calibration
    strategy = settings.checked_strategy()
    shared = images if strategy.recipe == SHARED_RECIPE else None
    own: dict[str, Any] = {} if shared is None else {"synthetic": shared}
    request = Request(
        weight_bits=job.spec.stored_bits,
        activation_bits=settings.activations,
        levels="pwlq" if isinstance(job.spec, PWLQSpec) else "uniform",
        example_inputs=(images[:1].clone(),),
        mean=inputs.mean,
        std=inputs.std,
        seed=settings.seed,
        depthwise="as-told" if settings.depthwise == "as-told" else "int8",
        batch_size=max(2, settings.batch),
        synthetic_count=TRAINING_IMAGES if strategy.trains else max(2, settings.calibration_images),
        **own,
    )
    try:
        applied = apply(strategy, job.loaded.model, request)
    except ValueError as error:
        raise LeftOut(f"strategy {settings.strategy}: {error}") from error
    notes = [f"strategy {applied.strategy}, ranges from {applied.data} images", *applied.notes]
    if applied.data == "none":
        notes[0] = f"strategy {applied.strategy}, without images"
    return HOST, Converted(applied.model, Audit(applied.layers), notes=notes, ranges=images)
