"""Whatever calibrates, as a data set of NNCF's: a data set, an iterable, a loader, or nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import nncf
import torch
from torch import Tensor, nn

from zaq_plugin.image_counts import CALIBRATION_IMAGES, TRAINING_IMAGES
from zaq_plugin.student.batches import Arguments, as_call, inputs_of
from zaq_plugin.zero_shot import (
    ImageFormat,
    ZeroShotConfig,
    ZeroShotLoader,
    distill_images,
)


class Batches(list[Any]):
    """Batches that tell NNCF their size, which it otherwise takes to be one."""

    batch_size: int = 1


class Copies(nncf.Dataset):
    """A data set whose items are copies: a model may change its inputs in place.

    Args:
        source: The data set.
    """

    def __init__(self, source: nncf.Dataset) -> None:
        super().__init__(source)
        self.source = source

    def get_data(self, indices: list[int] | None = None) -> Iterable[Any]:
        """The source's items as they are."""
        return self.source.get_data(indices)

    def get_inference_data(self, indices: list[int] | None = None) -> Iterable[Any]:
        """Copies of the source's inputs."""
        return map(own, self.source.get_inference_data(indices))

    def get_length(self) -> int | None:
        """The source's length, None where it has none."""
        return self.source.get_length()

    def get_batch_size(self) -> int | None:
        """The source's batch size, None where it says none."""
        return self.source.get_batch_size()


def own(batch: Any) -> Any:
    """A copy of a batch: its tensors' values, in the same tuples, lists and mappings."""
    if isinstance(batch, Tensor):
        return batch.clone()
    if isinstance(batch, Mapping):
        return {key: own(value) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(own, batch))
    return type(batch)(map(own, batch)) if isinstance(batch, tuple | list) else batch


def as_dataset(
    calibration: object,
    model: nn.Module,
    subset_size: int,
    *,
    image_shape: ImageFormat | tuple[int, int, int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    config: ZeroShotConfig | None,
    trains: bool = False,
) -> tuple[nncf.Dataset, Any]:
    """NNCF's data set, and its first item, an example of the model's input.

    Args:
        calibration: See `zaq_nncf.quantize`.
        model: The float model with its BatchNorms, which remember what images look like.
        subset_size: Number of images that calibrate.
        image_shape, mean, std, config: For images made from the model; see `zaq_nncf.quantize`.
        trains: Whether something learns from the images, so that more are made.

    Raises:
        ValueError: there is no batch.
        TypeError: a batch is of an unknown kind, or the calibration cannot be iterated.
    """
    if isinstance(calibration, nncf.Dataset):
        copies = Copies(calibration)
        return copies, _first(copies.get_inference_data(), "the nncf.Dataset")
    if calibration is None:
        count = min(subset_size, TRAINING_IMAGES if trains else CALIBRATION_IMAGES)
        images = generate(model, count, image_shape, mean, std, config)
        batches = list(images.split(32))
    elif isinstance(calibration, ZeroShotLoader):
        batches = _from_loader(calibration, subset_size)
    elif isinstance(calibration, Tensor):
        raise TypeError(
            f"calibration: a tensor of shape {tuple(calibration.shape)} is one batch; pass "
            "images.split(32) for batches of 32."
        )
    elif isinstance(calibration, Iterable):
        batches = _from_iterable(calibration, subset_size, inputs_of(model))
    else:
        raise TypeError(
            "calibration must be an nncf.Dataset, an iterable of batches, a ZeroShotLoader, or "
            f"None to make images from the model; got {type(calibration).__name__}."
        )
    if not batches:
        raise ValueError("calibration: there is no batch in it; give at least one.")
    dataset = Batches(batches)
    dataset.batch_size = _size(batches[0])
    return Copies(nncf.Dataset(dataset)), own(batches[0])


def first_images(batches: Iterable[Any], count: int) -> list[Any]:
    """The first images, as batches; a first batch of more images is cut, others are whole.

    Args:
        batches: As NNCF's data set gives them: tensors, tuples of all inputs, or mappings.
        count: How many images.
    """
    chosen: list[Any] = []
    for batch in batches:
        size = _size(batch)
        if isinstance(batch, Tensor) and batch.dim() == 4 and not chosen and size > count:
            batch = batch[:count]  # of fewer dimensions it may be one sample
        chosen.append(Arguments(batch) if isinstance(batch, tuple) else batch)
        count -= size
        if count <= 0:
            break
    return chosen


def _first(items: Iterable[Any], what: str) -> Any:
    for item in items:
        return item
    raise ValueError(f"calibration: {what} is empty; give at least one batch.")


def _size(batch: Any) -> int:
    values: Iterable[Any] = batch.values() if isinstance(batch, Mapping) else [batch]
    values = batch if isinstance(batch, tuple) else values
    sizes = [v.shape[0] for v in values if isinstance(v, Tensor) and v.dim()]
    return sizes[0] if sizes else 1


def _from_iterable(calibration: Iterable[Any], subset_size: int, inputs: int) -> list[Any]:
    """The first batches, until there are enough images: an endless iterable is welcome.

    Of a tuple or list the first ``inputs`` entries are the model's, the rest are labels.
    """
    batches: list[Any] = []
    count = 0
    for item in calibration:
        args, kwargs = as_call(item, inputs)
        batch = kwargs if kwargs else args[0] if len(args) == 1 else args
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
    images: list[Tensor] = []
    for _ in itertools.count():
        images.append(source.adversary.sample().to(loader.dtype))
        if sum(map(len, images)) >= subset_size:
            return images
    return images


def generate(
    model: nn.Module,
    count: int,
    image_shape: ImageFormat | tuple[int, int, int] | None = None,
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
    images = _known(model, image_shape, mean, std)
    if config.source.kind == "generator":
        config = config.with_changes(distill_method="generator")
    return distill_images(
        model,
        max(2, count),
        images,
        options=config.distillation.options(config.source, max(2, min(128, count))),
        rng=torch.Generator().manual_seed(config.seed),
    ).to(next(model.parameters()).dtype)


def _known(
    model: nn.Module,
    image_shape: ImageFormat | tuple[int, int, int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> ImageFormat:
    """Shape and normalisation, completed from the model's ``pretrained_cfg`` (timm) if it has one.

    Raises:
        ValueError: the shape is not known.
    """
    if isinstance(image_shape, ImageFormat):
        return ImageFormat.of(image_shape, mean, std)
    said: Any = getattr(model, "pretrained_cfg", None) or {}
    if image_shape is None:
        if "input_size" not in said:
            raise ValueError(
                "without calibration data images are made from the model, which needs their shape: "
                "pass image_shape=(channels, height, width), and mean and std if the model's input "
                f"is normalised. ({type(model).__name__} has no pretrained_cfg that says them.)"
            )
        image_shape = tuple(said["input_size"])
    return ImageFormat.of(
        image_shape,
        said.get("mean") if mean is None else mean,
        said.get("std") if std is None else std,
    )
