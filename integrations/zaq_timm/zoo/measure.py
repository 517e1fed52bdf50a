"""How far a quantized model is from the float one: on the user's images, or without any."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zaq_plugin.ptq.output_distance import agreements, divergences
from zaq_plugin.zero_shot import all_outputs

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
