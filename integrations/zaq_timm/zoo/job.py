"""What a worker does with one model: everything from loading it to its row and its details."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zaq_plugin.pwlq import QuantSpec
from zaq_plugin.report import Manifest
from zaq_plugin.zero_shot import FinetuneResult, ZeroShotConfig, zero_shot_finetune
from zaq_timm.zoo import details
from zaq_timm.zoo.errors import FAILED, LeftOut, is_out_of_memory
from zaq_timm.zoo.exporting import (
    answers,
    export_model,
    latencies,
    one_by_one,
    onnx_runner,
    sizes,
)
from zaq_timm.zoo.hosts import (
    Converted,
    Correct,
    Request,
    convert,
    convert_by_strategy,
    images_wanted,
)
from zaq_timm.zoo.images import make_images
from zaq_timm.zoo.measure import measure
from zaq_timm.zoo.model_job import Job, Report
from zaq_timm.zoo.models import load
from zaq_timm.zoo.ranks import averaged_gradients, rank_and_size
from zaq_timm.zoo.references import Reference
from zaq_timm.zoo.settings import Settings
from zaq_timm.zoo.widths import choose_widths

MANIFEST = "manifest.json"


def run_job(payload: dict[str, Any], folder: Path, report: Report) -> dict[str, Any]:
    """Quantizes, converts and measures one model; the work that `zaq_timm.zoo.worker` is given.

    Args:
        payload: ``reference`` and ``settings`` as plain values, and ``batch``.
        folder: where the details go.
        report: told stage, step and steps.

    Returns:
        The row.

    Raises:
        LeftOut: the model cannot be had or quantized.
    """
    settings = Settings.from_dict({**payload["settings"], "batch": payload["batch"]})
    reference = Reference(**payload["reference"])
    with rank_and_size(settings.ranks):
        torch.manual_seed(settings.seed)
        manifest = Manifest.start(reference.name, seeds={"run": settings.seed})
        report("loading the model", 0, 0)
        with manifest.stage("load") as facts:
            loaded = load(reference, settings)
            facts["weights from"], facts["images"] = loaded.weights, loaded.inputs.shape
        with manifest.stage("make synthetic images") as facts:
            count = _calibration_count(settings)
            images = make_images(loaded.model, loaded.inputs, settings, count, report)
            facts.update({"kind": images.kind, "calibration": count, "test": settings.test_images})
        job = Job(settings, folder, report, loaded, images, manifest)
        widths = choose_widths(job)
        host, converted = _convert(job, widths.overrides)
        row = measure(job, host, converted)
        row.update(_export(job, converted))
        details.write(job, widths, converted)
        manifest.save(folder / MANIFEST)
    return row


def _calibration_count(settings: Settings) -> int:
    """How many images must be there before conversion."""
    if settings.strategy:
        return images_wanted(settings)
    if settings.zero_shot == "none":
        return settings.calibration_images
    config = ZeroShotConfig.preset(settings.zero_shot)
    count = config.distillation.images + config.judging.images if config.uses_distilled else 0
    return max(settings.calibration_images, count)


def _convert(job: Job, overrides: Mapping[str, QuantSpec]) -> tuple[str, Converted]:
    settings = job.settings
    job.report("quantizing", 0, 0)
    if settings.strategy:
        with job.manifest.stage("quantize", strategy=settings.strategy) as facts:
            host, converted = convert_by_strategy(job, overrides)
            facts["notes"] = converted.notes
        _record(job, converted)
        return host, converted
    finetune = None if settings.zero_shot == "none" else partial(_finetune, job)
    request = Request(
        job.loaded.model,
        job.spec,
        settings.activations,
        overrides,
        job.images.calibration[: settings.calibration_images],
        settings.batch,
        finetune,
    )
    with job.manifest.stage("quantize and convert") as facts:
        host, converted = convert(settings.wanted_host, request)
        facts["host"], facts["notes"] = host, converted.notes
    _record(job, converted)
    return host, converted


def _record(job: Job, converted: Converted) -> None:
    job.manifest.layers = converted.layers
    job.manifest.specs = {
        "weights": job.spec.to_json(),
        "activations": job.settings.activations,
    }


def _finetune(job: Job, student: nn.Module, correct: Correct | None) -> FinetuneResult:
    """Zero-shot fine-tuning; under torchrun the ranks share every step's batch."""
    settings, inputs = job.settings, job.loaded.inputs
    config = ZeroShotConfig.preset(settings.zero_shot, seed=settings.seed)
    batch = max(2, min(config.batch_size, settings.batch) // settings.ranks)
    config = config.with_changes(
        batch_size=batch,
        calibration_images=settings.calibration_images,
        reconstruct_batch_size=min(config.reconstruction.batch_size, settings.batch),
    )

    def on_step(step: int) -> None:
        job.report("zero-shot training", step, config.steps)

    job.report("zero-shot training", 0, config.steps)
    with averaged_gradients():
        return zero_shot_finetune(
            student,
            config,
            image_shape=inputs,
            float_model=job.loaded.model,
            images=job.images.calibration if config.uses_distilled else None,
            correct=correct,
            progress=False,
            on_step=on_step,
        )


def _export(job: Job, converted: Converted) -> dict[str, Any]:
    """What was exported; a failure is the row's status, its figures stay."""
    files: list[dict[str, Any]] = []
    for kind in job.settings.export_kinds:
        try:
            files.append(_exported(kind, job, converted))
        except LeftOut:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            text = " ".join(str(error).split())[:300]
            failed = {"status": FAILED, "reason": f"quantized, but not exported: {text}"}
            return {**_told(job, converted, files), **failed}
    return _told(job, converted, files)


def _told(job: Job, converted: Converted, files: list[dict[str, Any]]) -> dict[str, Any]:
    if not files:
        return {}
    if converted.fixed_batch not in (None, 1):
        return {"exported": files[0], "files": files}
    return {"exported": files[0], "files": [{**file, **_figures(job, file)} for file in files]}


def _figures(job: Job, file: dict[str, Any]) -> dict[str, Any]:
    """What files of every kind have; those for devices were measured when they were written."""
    path = job.folder / file["file"]
    figures: dict[str, Any] = {} if "zipped_bytes" in file else sizes(path)
    if path.suffix == ".onnx":
        run = onnx_runner(path)
        figures |= answers(job, one_by_one(run))
        figures["ms"] = latencies({"ours": run}, job.images.test[:1].clone())["ours"]
    return figures


def _exported(kind: str, job: Job, converted: Converted) -> dict[str, Any]:
    job.report(f"exporting {kind}", 0, 0)
    with job.manifest.stage("export", format=kind) as facts:
        images = job.images.test[: converted.fixed_batch or 2]
        if converted.fixed_batch and len(images) < converted.fixed_batch:
            images = images[:1].expand(converted.fixed_batch, -1, -1, -1)
        file = export_model(kind, converted, images.clone(), job.folder, job)
        facts.update(file)
    return file
