"""Whatever calibrates, as a data set of NNCF's: a data set, an iterable, a loader, or nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import nncf
import torch
from torch import Tensor, nn

from zaq_plugin.student.batches import Arguments, as_call
from zaq_plugin.zero_shot import (
    DistillOptions,
    ImageStatistics,
    ZeroShotConfig,
    ZeroShotLoader,
    distill_images,
)

GENERATED = 128
"""Images that are made where no calibration data is given."""


class Batches(list[Any]):
    """Batches that tell NNCF their size, which it otherwise takes to be one."""

    batch_size: int = 1


def as_dataset(
    calibration: object,
    model: nn.Module,
    subset_size: int,
    *,
    image_shape: tuple[int, int, int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    config: ZeroShotConfig | None,
) -> tuple[nncf.Dataset, Any]:
    """NNCF's data set, and its first item, an example of the model's input.

    Args:
        calibration: See `zaq_nncf.quantize`.
        model: The float model with its BatchNorms, which remember what images look like.
        subset_size: Number of images that calibrate.
        image_shape, mean, std, config: For images made from the model; see `zaq_nncf.quantize`.

    Raises:
        ValueError: there is no batch.
        TypeError: a batch is of an unknown kind, or the calibration cannot be iterated.
    """
    if isinstance(calibration, nncf.Dataset):
        return calibration, _first(calibration.get_inference_data(), "the nncf.Dataset")
    if calibration is None:
        images = generate(model, min(subset_size, GENERATED), image_shape, mean, std, config)
        batches = list(images.split(32))
    elif isinstance(calibration, ZeroShotLoader):
        batches = _from_loader(calibration, subset_size)
    elif isinstance(calibration, Tensor):
        raise TypeError(
            f"calibration: a tensor of shape {tuple(calibration.shape)} is one batch; pass "
            "images.split(32) for batches of 32."
        )
    elif isinstance(calibration, Iterable):
        batches = _from_iterable(calibration, subset_size)
    else:
        raise TypeError(
            "calibration must be an nncf.Dataset, an iterable of batches, a ZeroShotLoader, or "
            f"None to make images from the model; got {type(calibration).__name__}."
        )
    if not batches:
        raise ValueError("calibration: there is no batch in it; give at least one.")
    kept = Batches(batches)
    kept.batch_size = _size(batches[0])
    return nncf.Dataset(kept), batches[0]


def first_images(batches: Iterable[Any], count: int) -> list[Any]:
    """The first images, as batches; the last one is cut.

    Args:
        batches: As NNCF's data set gives them: tensors, tuples of all inputs, or mappings.
        count: How many images.
    """
    kept: list[Any] = []
    for batch in batches:
        size = _size(batch)
        if isinstance(batch, Tensor) and size > count:
            batch = batch[:count]
        kept.append(Arguments(batch) if isinstance(batch, tuple) else batch)
        count -= size
        if count <= 0:
            break
    return kept


def _first(items: Iterable[Any], what: str) -> Any:
    for item in items:
        return item
    raise ValueError(f"calibration: {what} is empty; give at least one batch.")


def _size(batch: Any) -> int:
    values = batch.values() if isinstance(batch, Mapping) else [batch]
    sizes = [v.shape[0] for v in values if isinstance(v, Tensor) and v.dim()]
    return sizes[0] if sizes else 1


def _from_iterable(calibration: Iterable[Any], subset_size: int) -> list[Any]:
    """The first batches, until there are enough images: an endless iterable is welcome."""
    batches: list[Any] = []
    count = 0
    for item in calibration:
        args, kwargs = as_call(item)
        batch = args[0] if args else kwargs
        batches.append(batch)
        count += _size(batch)
        if count >= subset_size:
            break
    return batches


def _from_loader(loader: ZeroShotLoader, subset_size: int) -> list[Tensor]:
    """Images of a zero-shot loader: its distilled ones, or else its generator's."""
    loader.prepare()
    source = loader.source
    assert source is not None
    if source.pool is not None:
        return list(source.pool[:subset_size].split(32))
    assert source.adversary is not None
    made: list[Tensor] = []
    for _ in itertools.count():
        made.append(source.adversary.sample().to(loader.dtype))
        if sum(map(len, made)) >= subset_size:
            return made
    return made


def generate(
    model: nn.Module,
    count: int,
    image_shape: tuple[int, int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    config: ZeroShotConfig | None = None,
) -> Tensor:
    """Images from the model itself, (count, C, H, W), on the model's device.

    Args:
        model: Float, with its BatchNorms.
        count: How many, at least 2.
        image_shape, mean, std: Of the model's images; by default what a timm model says of itself.
        config: Seed and settings of distillation.

    Raises:
        ValueError: the shape is not known.
    """
    config = config or ZeroShotConfig()
    image_shape, mean, std = _known(model, image_shape, mean, std)
    options = DistillOptions(
        steps=config.distill_steps,
        batch_size=max(2, min(128, count)),
        lr=config.distill_lr,
        method="generator" if config.images == "generator" else config.distill_method,
        total_variation=config.total_variation,
        class_weight=config.class_weight,
        swing=config.swing,
        low_pass=config.low_pass,
    )
    return distill_images(
        model,
        max(2, count),
        image_shape,
        options=options,
        statistics=ImageStatistics.for_channels(image_shape[0], mean, std),
        rng=torch.Generator().manual_seed(config.seed),
    ).to(next(model.parameters()).dtype)


def _known(
    model: nn.Module,
    image_shape: tuple[int, int, int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> tuple[tuple[int, int, int], Sequence[float] | None, Sequence[float] | None]:
    """Shape and normalisation, completed from the model's ``pretrained_cfg`` (timm) if it has one.

    Raises:
        ValueError: the shape is not known.
    """
    said: Any = getattr(model, "pretrained_cfg", None) or {}
    if image_shape is None:
        if "input_size" not in said:
            raise ValueError(
                "without calibration data images are made from the model, which needs their shape: "
                "pass image_shape=(channels, height, width), and mean and std if the model's input "
                f"is normalised. ({type(model).__name__} has no pretrained_cfg that says them.)"
            )
        image_shape = tuple(said["input_size"])
    return (
        image_shape,
        said.get("mean") if mean is None else mean,
        said.get("std") if std is None else std,
    )
