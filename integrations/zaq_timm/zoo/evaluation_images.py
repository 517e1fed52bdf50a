"""The user's images, which measure and do nothing else: a folder of class folders, or an npz."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zaq_timm.zoo.errors import LeftOut
from zaq_timm.zoo.models import Inputs
from zaq_timm.zoo.places import ENDINGS, check_evaluation


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
