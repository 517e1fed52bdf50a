"""A model quantized by one of `zaq_plugin.strategies`, in the place of a host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zaq_plugin.pwlq import PWLQSpec
from zaq_plugin.report import Audit
from zaq_plugin.strategies import Request, Strategy, apply, compose
from zaq_timm.zoo.errors import LeftOut
from zaq_timm.zoo.hosts import Converted
from zaq_timm.zoo.settings import Settings, weight_spec

if TYPE_CHECKING:
    from zaq_timm.zoo.job import Job

HOST = "simulated"
SHARED_RECIPE = "leaves"
"""Strategies with this recipe take the images that the run has made already."""
SEVERAL_TENSORS = ("second-tensor", "bit-allocation")
"""Stages that put a weight together from several tensors, which no int8 kernel multiplies by."""
TRAINING_IMAGES = 384
"""So many images are made for strategies that learn something."""


def check_strategy(settings: Settings) -> Strategy:
    """The strategy that the settings name.

    Raises:
        ValueError: It does not exist, needs real images, of which a run has none to give, or makes
            weights that the export asked for cannot hold.
    """
    strategy = compose(settings.strategy)
    if strategy.data == "real":
        raise ValueError(
            f"strategy {settings.strategy!r} needs real images, and a run makes its own (--eval "
            "images only ever measure); use zaq_plugin.strategies.apply in Python, or a strategy "
            "without real images, such as zaq."
        )
    if settings.export != "none":
        _check_export(settings, strategy)
    return strategy


def _check_export(settings: Settings, strategy: Strategy) -> None:
    if settings.export != "onnx":
        raise ValueError(
            f"strategy does not go with export={settings.export}, which needs a host's converted "
            "model; use export=onnx."
        )
    for stage in strategy.stages:
        if stage.name in SEVERAL_TENSORS:
            raise ValueError(
                f"strategy {settings.strategy!r} does not go with export: {stage.name} puts "
                "weights together from several tensors, which no int8 kernel multiplies by; leave "
                "export away, or use a strategy of one grid per channel, such as pwlq+gptq."
            )
    if weight_spec(settings.weights).stored_bits > 7:
        raise ValueError(
            f"weights={settings.weights} does not go with strategy and export: a strategy's 8-bit "
            "grids are asymmetric and do not fit int8; use uniform7 or fewer bits, or leave the "
            "strategy away: hosts have symmetric ones."
        )


def images_wanted(settings: Settings) -> int:
    """How many calibration images the run should make for the strategy."""
    strategy = check_strategy(settings)
    if strategy.trains and strategy.recipe == SHARED_RECIPE:
        return max(settings.calibration_images, TRAINING_IMAGES)
    return settings.calibration_images


def convert_by_strategy(job: Job) -> tuple[str, Converted]:
    """The simulated student, with the audit of its layers.

    Raises:
        LeftOut: The strategy cannot do this model; the text says why.
    """
    settings, inputs, images = job.settings, job.loaded.inputs, job.images.calibration
    strategy = check_strategy(settings)
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
