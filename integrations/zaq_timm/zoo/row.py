"""A model's row: widths, sizes, and how far it is from the float one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from zaq_plugin.ptq import fold_batch_norm
from zaq_plugin.report import Audit
from zaq_plugin.zero_shot import FinetuneResult
from zaq_timm.zoo.evaluation_images import read_set
from zaq_timm.zoo.hosts import Converted
from zaq_timm.zoo.measure import accuracy, distance, outputs, padded
from zaq_timm.zoo.model_job import Job


def measure(job: Job, host: str, converted: Converted) -> dict[str, Any]:
    """The row: widths, sizes, and how far the model is from the float one."""
    settings, loaded = job.settings, job.loaded
    job.report("measuring", 0, 0)
    model: Any = (
        converted.model
        if converted.fixed_batch is None
        else padded(converted.model, converted.fixed_batch)
    )
    with job.manifest.stage("measure") as facts:
        gap = distance(
            outputs(loaded.model, job.images.test, settings.batch),
            outputs(model, job.images.test, settings.batch),
        )
        facts["synthetic images"] = gap.images
        on_images: dict[str, Any] = {}
        if settings.eval:
            with torch.no_grad():
                first = outputs(loaded.model, job.images.test[:1], 1)[0]
            classes = first.shape[1] if first.dim() == 2 else None
            images = read_set(settings.eval, classes, settings.eval_images, settings.seed)
            scores = accuracy(loaded.model, model, images.batches(loaded.inputs, settings.batch))
            on_images = {
                "eval_images": scores.images,
                "float_top1": scores.float_top1,
                "top1": scores.top1,
                "eval_agreement": scores.agreement,
            }
    layers = converted.layers
    float_bytes = 4 * sum(p.numel() for p in loaded.model.parameters())
    return {
        "model": job.manifest.model,
        "host": host,
        "weights_from": loaded.weights,
        "input": "x".join(map(str, loaded.inputs.shape)),
        "batch": settings.batch,
        "calibration": job.images.kind,
        "mac_bits": layers.mac_bits,
        "stored_bits": layers.stored_bits,
        "activation_bits": settings.activations,
        "layers": len(layers),
        "quantized": len(layers.quantized),
        "parameters": float_bytes // 4,
        "float_bytes": float_bytes,
        "size_bytes": layers.stored_bytes + 4 * _unrecorded(loaded.model, layers),
        "sqnr_db": _finite(_weight_sqnr(layers)),
        "divergence": _finite(gap.divergence),
        "agreement": gap.agreement,
        "agreement_images": gap.images,
        "output_sqnr_db": _finite(gap.sqnr_db),
        **on_images,
        **_training_facts(job.finetuned),
        "notes": [*converted.notes, *loaded.notes],
        "warnings": list(loaded.notes),  # those that the terminal repeats
    }


def _training_facts(result: FinetuneResult | None) -> dict[str, Any]:
    if result is None or result.best is None:
        return {}
    return {
        "zero_shot_kept": result.best.label,
        "zero_shot_divergence": [result.start.divergence, result.best.divergence],
    }


def _unrecorded(model: nn.Module, layers: Audit) -> int:
    """Number of parameters, BatchNorm folded, that the audit does not speak of: biases and such."""
    try:
        folded = fold_batch_norm(model)
    except Exception:  # what cannot be folded is counted as it is
        folded = model
    total = sum(p.numel() for p in folded.parameters())
    return max(0, total - sum(record.numel for record in layers))


def _weight_sqnr(layers: Audit) -> float | None:
    """Mean over the quantized layers; exact ones are left out of it."""
    ratios = [r.sqnr_db for r in layers.quantized if r.sqnr_db is not None]
    finite = [v for v in ratios if math.isfinite(v)]
    return sum(finite) / len(finite) if finite else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
