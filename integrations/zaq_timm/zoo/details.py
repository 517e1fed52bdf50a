"""What a model's page shows beside its row: layers, sensitivities, levels, pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin.layers import channel_axis, weight_of
from zaq_plugin.pwlq import QuantSpec, quantize
from zaq_plugin.report import Audit
from zaq_plugin.report.images import png_bytes, tile
from zaq_timm.zoo.hosts import Converted
from zaq_timm.zoo.light import write_json, write_whole
from zaq_timm.zoo.model_job import Job
from zaq_timm.zoo.widths import Widths

DETAILS, PICTURES = "details.json", "images.png"
HISTOGRAMS = 4
SHOWN_IMAGES, SHOWN_SIZE = 6, 48
FRONTIER_POINTS = 60


def write(job: Job, widths: Widths, converted: Converted) -> None:
    """Writes a model's details into its folder.

    Args:
        job: the float model and its images.
        widths: what was measured for the choice of formats.
        converted: the converted model; levels of the float weights say nothing of trained ones.
    """
    trained = converted.finetuned
    details = {
        "layers": [record.to_dict() for record in converted.layers],
        "sensitivities": _sensitivities(widths),
        "frontier": _frontier(widths),
        "levels": [] if trained else _levels(job, widths, converted.layers),
        "curve": trained.curve if trained else [],
    }
    write_json(job.folder / DETAILS, details)
    images = trained.examples if trained else None
    shown = job.images.calibration if images is None else images
    write_whole(job.folder / PICTURES, _pictures(shown))


def _sensitivities(widths: Widths) -> list[dict[str, Any]]:
    """Each layer at its final format: what it alone does to the outputs."""
    return [
        {
            "layer": s.layer,
            "mac_bits": s.spec.mac_bits,
            "stored_bits": s.spec.stored_bits,
            "divergence": s.divergence,
        }
        for s in widths.final
    ]


def _frontier(widths: Widths) -> list[dict[str, Any]]:
    """Points of the frontier, thinned; the chosen one is marked."""
    step = max(1, len(widths.points) // FRONTIER_POINTS)
    last = len(widths.points) - 1
    return [
        {
            "stored_bits": widths.mean_bits(point),
            "divergence": point.divergence,
            "chosen": point is widths.chosen,
        }
        for index, point in enumerate(widths.points)
        if not index % step or point is widths.chosen or index == last
    ]


def _levels(job: Job, widths: Widths, layers: Audit) -> list[dict[str, Any]]:
    """Of a few layers' middle channel: each level, and how many weights sit on it."""
    modules = dict(job.loaded.model.named_modules())
    at_hand = {
        record.name: modules[record.name]
        for record in layers.quantized
        if weight_of(modules.get(record.name)) is not None
    }
    counts = []
    for name in _chosen(at_hand):
        spec = widths.overrides.get(name, job.spec)
        counts.append({"layer": name, **_level_counts(at_hand[name], spec)})
    return counts


def _chosen(modules: dict[str, nn.Module]) -> list[str]:
    """First, last, and the largest ones between."""
    names = list(modules)
    if len(names) <= HISTOGRAMS:
        return names
    between = sorted(
        names[1:-1],
        key=lambda n: -modules[n].weight.numel(),  # type: ignore[operator]
    )
    chosen = {names[0], names[-1], *between[: HISTOGRAMS - 2]}
    return [name for name in names if name in chosen]


def _level_counts(module: nn.Module, spec: QuantSpec) -> dict[str, Any]:
    weight: Tensor = module.weight.detach()  # type: ignore[operator]
    axis = channel_axis(module)
    rows = weight.movedim(axis, 0).flatten(1)
    channel = int(rows.abs().amax(1).argsort(stable=True)[(len(rows) - 1) // 2])
    one = quantize(rows[channel : channel + 1], spec, 0)
    values = one.codebook[0].float() * one.scale[0].float()
    counts = torch.bincount(one.codes.flatten().long(), minlength=len(values))
    order = values.argsort()
    return {
        "channel": channel,
        "spec": spec.label,
        "levels": [round(v, 8) for v in values[order].tolist()],
        "counts": counts[: len(values)][order].tolist(),
    }


def _pictures(images: Tensor) -> bytes:
    """A few images in a row as PNG, each from its darkest to its brightest value."""
    shown = images[:SHOWN_IMAGES].float()
    if shown.shape[1] not in (1, 3):
        shown = shown.mean(1, keepdim=True)
    if shown.shape[-1] > SHOWN_SIZE or shown.shape[-2] > SHOWN_SIZE:
        shown = nn.functional.interpolate(shown, size=(SHOWN_SIZE, SHOWN_SIZE), mode="area")
    low, high = shown.amin((1, 2, 3), keepdim=True), shown.amax((1, 2, 3), keepdim=True)
    pixels = ((shown - low) / (high - low).clamp(min=1e-6) * 255).round().to(torch.uint8)
    return png_bytes(tile(pixels, SHOWN_IMAGES, 2))
