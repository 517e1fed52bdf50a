"""How far a quantized model is from the float one, on the user's images or without; its row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin.ptq import fold_batch_norm
from zaq_plugin.ptq.output_distance import agreements, divergences
from zaq_plugin.report import Audit
from zaq_plugin.zero_shot import FinetuneResult, all_outputs
from zaq_timm.zoo.hosts import Converted
from zaq_timm.zoo.images import read_set
from zaq_timm.zoo.model_job import Job

Model = Callable[[Tensor], object]


@dataclass(frozen=True)
class Distance:
    """Two models on the same images.

    Attributes:
        divergence: mean Kullback-Leibler divergence of the second's softmax from the first's, in
            nats, over images (and positions, and outputs); of an output with one channel the
            squared error relative to the first's spread.
        agreement: share of images with the same top class, in percent; of an output with one
            channel, of those on the same side of 0 (of the first's mean, if all have one sign).
        sqnr_db: signal to quantization noise of the raw outputs, in dB.
        images: how many.
    """

    divergence: float
    agreement: float
    sqnr_db: float
    images: int


@dataclass(frozen=True)
class Accuracy:
    """Two models on images with classes; percent."""

    float_top1: float
    top1: float
    agreement: float
    images: int


def outputs(model: Model, images: Tensor, batch: int) -> list[Tensor]:
    """The outputs of all images, joined over batches; integer outputs are left out."""
    with torch.no_grad():
        parts = [[t.float() for t in all_outputs(model(x))] for x in images.split(batch)]
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def distance(first: list[Tensor], second: list[Tensor]) -> Distance:
    """Compares outputs, (n, classes) or (n, classes, ...) each; see `outputs`.

    Raises:
        ValueError: outputs that differ in shape.
    """
    shapes = [[tuple(t.shape) for t in side] for side in (first, second)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the quantized model's outputs are {shapes[1]}, the float's {shapes[0]}.")
    apart, alike, signal, noise = [], [], 0.0, 0.0
    for p, q in zip(first, second, strict=True):
        apart.append(float(divergences(p.double(), q.double()).clamp(min=0).mean()))
        alike.append(float(agreements(p, q).double().mean()))
        signal += float(p.double().square().sum())
        noise += float((p.double() - q.double()).square().sum())
    ratio = math.inf if noise == 0 else 10 * math.log10(max(signal, 1e-300) / noise)
    count = len(alike)
    return Distance(sum(apart) / count, 100 * sum(alike) / count, ratio, len(first[0]))


def accuracy(
    float_model: Model, quantized: Model, batches: Iterable[tuple[Tensor, Tensor]]
) -> Accuracy:
    """Top-1 of both models and their agreement; one image is one vote.

    Raises:
        ValueError: a model that is no classifier, or labels that it has no class for.
    """
    right = [0, 0]
    same = count = 0
    with torch.no_grad():
        for images, labels in batches:
            logits = [all_outputs(model(images))[0] for model in (float_model, quantized)]
            if logits[0].dim() != 2:
                raise ValueError(
                    f"eval: images with classes measure classifiers; this model's output has shape "
                    f"{tuple(logits[0].shape)}."
                )
            if int(labels.max()) >= logits[0].shape[1]:
                raise ValueError(
                    f"eval: there is a class {int(labels.max())}, but the model knows "
                    f"{logits[0].shape[1]} classes."
                )
            tops = [x.argmax(1) for x in logits]
            for index, top in enumerate(tops):
                right[index] += int((top == labels).sum())
            same += int((tops[0] == tops[1]).sum())
            count += len(labels)
    return Accuracy(100 * right[0] / count, 100 * right[1] / count, 100 * same / count, count)


def padded(model: nn.Module, size: int) -> Model:
    """A model that takes batches of one size only, for batches up to that size."""

    def call(images: Tensor) -> object:
        if len(images) == size:
            return model(images)
        parts = []
        for chunk in images.split(size):
            rest = size - len(chunk)
            whole = torch.cat([chunk, chunk[-1:].expand(rest, *chunk.shape[1:])]) if rest else chunk
            parts.append([t[: len(chunk)] for t in all_outputs(model(whole))])
        return [torch.cat(column) for column in zip(*parts, strict=True)]

    return call


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
        **_training_facts(converted.finetuned),
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
