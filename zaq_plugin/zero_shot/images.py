"""What images a model takes, and images of random shapes that look natural to it.

The pixels' scale is what all synthetic images need. Dead leaves are random shapes that cover one
another, the model of Matheron and of Lee, Mumford and Huang (IJCV 2001): discs and boxes of all
sizes fall on top of each other, which gives edges, flat regions and the spectrum of photographs,
from nothing. Baradad et al. (NeurIPS 2021) train networks on such images. Here they are what
distillation starts from, and what a model without BatchNorm is shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Mean and standard deviation of natural images' red, green and blue, pixels in 0..1.
NATURAL_MEAN = (0.485, 0.456, 0.406)
NATURAL_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageStatistics:
    """The model's input normalisation, ``x = (pixel - mean) / std`` with pixels in 0..1.

    Attributes:
        mean: Mean that the model's preprocessing subtracts, one value per channel.
        std: Standard deviation that it divides by, one value per channel.

    Raises:
        ValueError: if the lengths differ, are zero, or a standard deviation is not positive.
    """

    mean: tuple[float, ...] = NATURAL_MEAN
    std: tuple[float, ...] = NATURAL_STD

    def __post_init__(self) -> None:
        if len(self.mean) == 0 or len(self.mean) != len(self.std):
            raise ValueError(
                f"ImageStatistics: mean and std need one value per image channel; got "
                f"{len(self.mean)} and {len(self.std)} values."
            )
        if min(self.std) <= 0:
            raise ValueError(f"ImageStatistics: std must be positive; got {self.std}.")

    @classmethod
    def for_channels(
        cls, channels: int, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> ImageStatistics:
        """Statistics for images of so many channels.

        A single value serves every channel. Without mean and std a three-channel model is taken to
        use the natural images' own, and any other model to expect mean 0 and deviation 1.

        Raises:
            ValueError: if the values do not fit the channels.
        """
        natural_mean, natural_std = _natural(channels)
        found_mean = _spread("mean", mean, natural_mean, channels)
        found_std = _spread("std", std, natural_std, channels)
        return cls(found_mean, found_std)

    def _column(self, values: Sequence[float], like: Tensor | None) -> Tensor:
        device = None if like is None else like.device
        dtype = torch.float32 if like is None else like.dtype
        return torch.tensor(values, device=device, dtype=dtype).reshape(1, -1, 1, 1)

    def shift(self, like: Tensor | None = None) -> Tensor:
        """Mean of a natural image as the model sees it, (1, C, 1, 1)."""
        natural, _ = _natural(len(self.mean))
        pairs = zip(natural, self.mean, self.std, strict=True)
        return self._column([(n - m) / s for n, m, s in pairs], like)

    def scale(self, like: Tensor | None = None) -> Tensor:
        """Standard deviation of a natural image as the model sees it, (1, C, 1, 1)."""
        _, natural = _natural(len(self.mean))
        return self._column([n / s for n, s in zip(natural, self.std, strict=True)], like)

    def low(self, like: Tensor | None = None) -> Tensor:
        """A black pixel as the model sees it, (1, C, 1, 1)."""
        return self._column([-m / s for m, s in zip(self.mean, self.std, strict=True)], like)

    def high(self, like: Tensor | None = None) -> Tensor:
        """A white pixel as the model sees it, (1, C, 1, 1)."""
        return self._column([(1 - m) / s for m, s in zip(self.mean, self.std, strict=True)], like)

    def clamp(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) with every pixel between black and white."""
        return torch.minimum(torch.maximum(images, self.low(images)), self.high(images))


@dataclass(frozen=True)
class ImageFormat:
    """What images a model takes: their shape and how their pixels are normalised.

    Attributes:
        shape: (channels, height, width).
        mean, std: The model's input normalisation, pixels in 0..1: one value, or one per channel;
            None for what `ImageStatistics.for_channels` takes it to be.

    Raises:
        ValueError: for a shape that is none, or values that do not fit the channels.
    """

    shape: tuple[int, int, int]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        shape = tuple(int(size) for size in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(
                "ImageFormat: shape must be (channels, height, width), each at least 1; got "
                f"{tuple(self.shape)}."
            )
        object.__setattr__(self, "shape", shape)
        for name in ("mean", "std"):
            values = vars(self)[name]
            if values is not None:
                object.__setattr__(self, name, tuple(float(v) for v in values))
        _ = self.statistics  # which refuses what does not fit

    @classmethod
    def of(
        cls,
        image_shape: ImageFormat | Sequence[int],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> ImageFormat:
        """What users may say in its place: a shape, with mean and std beside it.

        Raises:
            ValueError: if mean or std come beside a format, which has its own.
        """
        if not isinstance(image_shape, ImageFormat):
            return cls(image_shape, mean, std)  # type: ignore[arg-type]
        if mean is not None or std is not None:
            raise ValueError(
                "mean and std are said twice: an ImageFormat has its own. Give it alone, or "
                "image_shape=(channels, height, width) with mean and std."
            )
        return image_shape

    @property
    def statistics(self) -> ImageStatistics:
        """The normalisation, one value per channel."""
        return ImageStatistics.for_channels(self.shape[0], self.mean, self.std)


def _natural(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if channels == 3:
        return NATURAL_MEAN, NATURAL_STD
    grey = sum(NATURAL_MEAN) / 3
    return (grey,) * channels, (sum(NATURAL_STD) / 3,) * channels


def _spread(
    name: str, values: Sequence[float] | None, default: tuple[float, ...], channels: int
) -> tuple[float, ...]:
    if values is None:
        return default
    numbers = tuple(float(v) for v in values)
    if len(numbers) == 1:
        return numbers * channels
    if len(numbers) != channels:
        raise ValueError(
            f"ImageStatistics: {name} has {len(numbers)} values for images of {channels} channels; "
            "give one value, or one per channel."
        )
    return numbers


LARGEST = 0.6  # the largest shape's radius, as a share of the image's longer side
TEXTURE = 0.1  # deviation of the noise on top
COLOUR = 0.45  # deviation of a shape's channels around its brightness


def dead_leaves(
    count: int, image_shape: tuple[int, int, int], rng: torch.Generator, *, shapes: int = 150
) -> Tensor:
    """Images of random shapes, each channel with mean 0 and deviation 1 over the batch.

    Radii have the density r^-2 between one pixel and 0.6 of the longer side; every shape has its
    own colour and a linear shading, the last one covers whatever is still free.

    Args:
        count: Number of images, at least 1.
        image_shape: (channels, height, width).
        rng: CPU source of everything.
        shapes: Shapes an image.

    Returns:
        (count, channels, height, width) float32, on the CPU.
    """
    channels, height, width = image_shape
    side = max(height, width)
    y = (torch.arange(height) + 0.5).reshape(1, -1, 1) / side
    x = (torch.arange(width) + 0.5).reshape(1, 1, -1) / side
    images = torch.zeros(count, channels, height, width)
    free = torch.ones(count, height, width, dtype=torch.bool)

    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, generator=rng)

    for index in range(shapes):
        low, high = 1 / side, LARGEST
        radius = 1 / (1 / low - (1 / low - 1 / high) * uniform(count, 1, 1))
        if index == shapes - 1:
            radius = torch.full((count, 1, 1), 9.0)
        down = y - uniform(count, 1, 1) * height / side
        right = x - uniform(count, 1, 1) * width / side
        angle = math.pi * uniform(count, 1, 1)
        across = (right * angle.cos() + down * angle.sin()) / radius
        along = (down * angle.cos() - right * angle.sin()) / (
            radius * (0.4 + 0.6 * uniform(count, 1, 1))
        )
        box = uniform(count, 1, 1) < 0.4
        disc = across.square() + along.square() < 1
        inside = torch.where(box, (across.abs() < 0.8) & (along.abs() < 0.8), disc)
        inside = (inside | (index == shapes - 1)) & free
        brightness = torch.randn(count, 1, 1, 1, generator=rng)
        colour = brightness + COLOUR * torch.randn(count, channels, 1, 1, generator=rng)
        slope = 0.3 * torch.randn(2, count, 1, 1, generator=rng)
        shade = slope[0] * across.clamp(-2, 2) + slope[1] * along.clamp(-2, 2)
        images = torch.where(inside.unsqueeze(1), colour + shade.unsqueeze(1), images)
        free &= ~inside
    images += TEXTURE * torch.randn(images.shape, generator=rng)
    mean = images.mean((0, 2, 3), keepdim=True)
    deviation = images.std((0, 2, 3), correction=0, keepdim=True)
    return (images - mean) / deviation.clamp(min=1e-6)
