"""A run's images: made ones, which set ranges and judge, and the user's, which measure alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zaq_plugin.zero_shot import DistillOptions, ImageFormat, distill_images
from zaq_plugin.zero_shot.distill import low_pass
from zaq_plugin.zero_shot.statistics import batch_norms
from zaq_timm.zoo.errors import LeftOut
from zaq_timm.zoo.models import Inputs
from zaq_timm.zoo.places import ENDINGS, check_evaluation
from zaq_timm.zoo.settings import Settings

Report = Callable[[str, int, int], None]

DISTILLED = "images distilled from BatchNorm statistics"
NOISE = "smooth noise with the mean and deviation of natural images"
SMOOTHNESS = (0.5, 1.0, 2.0, 4.0)
"""Standard deviations, in pixels, of the blurs that smooth noise goes through."""


@dataclass(frozen=True)
class Synthetic:
    """Synthetic images of one kind; the two sets never meet.

    Attributes:
        calibration: (n, C, H, W), may set ranges, biases and train.
        test: (m, C, H, W), only measures.
        kind: what they are, in words.
    """

    calibration: Tensor
    test: Tensor
    kind: str


def make_images(
    model: nn.Module, inputs: Inputs, settings: Settings, calibration: int, report: Report
) -> Synthetic:
    """Synthetic images for a float model, in its normalisation.

    Args:
        model: with its BatchNorms in place.
        calibration: how many that calibrate; ``settings.test_images`` more are made for judging.
        report: told stage, step and steps.
    """
    total = calibration + settings.test_images
    choice = settings.calibration
    if choice == "auto":
        choice = "distilled" if batch_norms(model) else "noise"
    rng = torch.Generator().manual_seed(settings.seed)
    if choice == "noise":
        images = smooth_noise(total, inputs, rng)
    else:
        options = DistillOptions(
            steps=settings.distill_steps, batch_size=max(2, min(settings.batch, total))
        )
        images = distill_images(
            model,
            total,
            inputs,
            options=options,
            rng=rng,
            progress=lambda step, steps, _: report("distilling images", step, steps),
        )
    # Every distilled batch has statistics of its own: both sets get of each.
    order = torch.randperm(total, generator=rng)
    images = images[order]
    kind = NOISE if choice == "noise" else DISTILLED
    return Synthetic(images[:calibration], images[calibration:], kind)


def smooth_noise(count: int, images: ImageFormat, rng: torch.Generator) -> Tensor:
    """Gaussian noise of several smoothnesses with natural images' mean and deviation.

    Returns:
        (count, C, H, W), between black and white.
    """
    shape, statistics, parts = images.shape, images.statistics, []
    for index in range(count):
        noise = torch.randn(1, *shape, generator=rng)
        blur = SMOOTHNESS[index % len(SMOOTHNESS)]
        if min(shape[1:]) > 3 * blur:
            noise = low_pass(noise, blur)
        noise = (noise - noise.mean()) / noise.std().clamp(min=1e-6)
        parts.append(statistics.clamp(noise * statistics.scale() + statistics.shift()))
    return torch.cat(parts)


@dataclass(frozen=True)
class EvaluationSet:
    """Images with their classes; read when they are asked for.

    Attributes:
        source: the folder or the file.
        items: paths, or (height, width, 3) uint8 arrays.
        labels: the class of each.
    """

    source: str
    items: list[Any]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.items)

    def batches(self, inputs: Inputs, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images as the model wants them, (n, C, H, W), and their classes, (n,)."""
        transform = _transform(inputs)
        for start in range(0, len(self.items), size):
            parts = [transform(_picture(i, inputs)) for i in self.items[start : start + size]]
            yield torch.stack(parts), torch.tensor(self.labels[start : start + size])


def read_set(path: str, classes: int | None, limit: int, seed: int) -> EvaluationSet:
    """Finds the images under a path.

    Args:
        path: a folder with one folder a class, or an npz with ``images`` (n, h, w, 3) or (n, h, w)
            uint8 and ``labels`` (n,).
        classes: of the model, if known: names that are no numbers then number the folders.
        limit: so many of them, drawn by the seed; 0 for all.
        seed: of the draw.

    Raises:
        ValueError: no such images, or folders whose classes cannot be told.
        OSError: they cannot be read.
    """
    place = Path(path).expanduser()
    check_evaluation(path)
    if place.is_dir():
        items, labels = _from_folder(place, classes)
    else:
        items, labels = _from_npz(place)
    if limit and limit < len(items):
        order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed))
        chosen = sorted(order[:limit].tolist())
        items, labels = [items[i] for i in chosen], [labels[i] for i in chosen]
    return EvaluationSet(path, items, labels)


def _from_npz(path: Path) -> tuple[list[Any], list[int]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            images, labels = archive["images"], archive["labels"]
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"eval: {path} must hold arrays 'images' (uint8) and 'labels' (whole numbers; {error})."
        ) from error
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or len(images) != len(labels):
        raise ValueError(
            f"eval: {path} must hold uint8 images (n, h, w, 3) or (n, h, w) and n labels; got "
            f"{images.dtype} {images.shape} and {labels.shape}."
        )
    return list(images), [int(label) for label in labels]


def _from_folder(place: Path, classes: int | None) -> tuple[list[Any], list[int]]:
    folders = sorted(p for p in place.iterdir() if p.is_dir())
    pairs = [
        (path, index)
        for index, folder in enumerate(folders)
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in ENDINGS
    ]
    names = [folder.name for folder in folders]
    if all(name.isdigit() for name in names):
        numbers = [int(name) for name in names]
    elif classes is None or len(folders) == classes:
        numbers = list(range(len(folders)))
    else:
        raise ValueError(
            f"eval: {place} has {len(folders)} class folders and the model {classes} classes, so "
            "their order does not tell the classes; name the folders by class number."
        )
    return [path for path, _ in pairs], [numbers[index] for _, index in pairs]


def _picture(item: Any, inputs: Inputs) -> Any:
    from PIL import Image

    mode = "L" if inputs.shape[0] == 1 else "RGB"
    if isinstance(item, np.ndarray):
        return Image.fromarray(item).convert(mode)
    try:
        with Image.open(item) as picture:
            return picture.convert(mode)
    except OSError as error:
        raise LeftOut(f"{item} is no image that can be read ({error})") from error


def _transform(inputs: Inputs) -> Any:
    from timm.data import create_transform

    return create_transform(
        input_size=inputs.shape,
        interpolation=inputs.interpolation,
        mean=inputs.mean,
        std=inputs.std,
        crop_pct=inputs.crop_pct,
        is_training=False,
    )
