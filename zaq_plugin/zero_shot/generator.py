"""The generator G: from noise z to images x (ZAQ, Liu et al., CVPR 2021, section 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zaq_plugin.zero_shot.images import ImageStatistics

LARGEST_SEED = 14
"""Side of the map that the noise is projected to, at most, along the shorter side of the image."""


class Upsample(nn.Module):
    """Nearest-neighbour enlargement to an exact size."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, *size)."""
        return nn.functional.interpolate(x, size=self.size, mode="nearest")

    def extra_repr(self) -> str:
        """The size."""
        return f"size={self.size}"


def stage_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Sizes (h, w) of the generator's maps, from the seed to the image.

    Each is twice the one before, rounded so that the last is the image exactly: two enlargements
    as in the paper, more once the seed would pass 14 pixels, fewer for images under 4 pixels.
    """
    shorter = min(height, width)
    count = max(2, math.ceil(math.log2(shorter / LARGEST_SEED)))
    while count > 0 and shorter < 2**count:
        count -= 1
    return [
        (math.ceil(height / 2**power), math.ceil(width / 2**power))
        for power in range(count, -1, -1)
    ]


class Generator(nn.Module):
    """DCGAN-style generator: linear projection, enlargements with 3x3 convolutions, bounded images.

    Layers, for two enlargements and width w: Linear z -> 2w maps; BN; [enlarge, Conv 3x3 2w, BN,
    LeakyReLU 0.2]; [enlarge, Conv 3x3 w, BN, LeakyReLU 0.2]; Conv 3x3 to the image's channels;
    tanh; BN without affine. The last BN gives every channel mean 0 and deviation 1 over the batch,
    which the image statistics then turn into what the model expects.

    Args:
        image_shape: (channels, height, width).
        latent_dim: Length of z.
        width: Channels w of the last hidden layer.
        statistics: The model's input normalisation; natural images' own by default.

    Raises:
        ValueError: for a size below 1.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_dim: int = 256,
        width: int = 64,
        statistics: ImageStatistics | None = None,
    ) -> None:
        super().__init__()
        if len(image_shape) != 3 or min(image_shape) < 1:
            raise ValueError(
                f"Generator: image_shape must be (channels, height, width), each at least 1; "
                f"got {tuple(image_shape)}."
            )
        if latent_dim < 1 or width < 1:
            raise ValueError(
                f"Generator: latent_dim and width must be at least 1; got {latent_dim} and {width}."
            )
        channels, height, wide = image_shape
        self.image_shape = (channels, height, wide)
        self.latent_dim = latent_dim
        self.statistics = statistics or ImageStatistics.for_channels(channels)
        if len(self.statistics.mean) != channels:
            raise ValueError(
                f"Generator: the image statistics are for {len(self.statistics.mean)} channels, "
                f"image_shape has {channels}."
            )
        sizes = stage_sizes(height, wide)
        self.seed_size = sizes[0]
        self.seed_channels = 2 * width
        self.project = nn.Linear(latent_dim, self.seed_channels * sizes[0][0] * sizes[0][1])
        layers: list[nn.Module] = [nn.BatchNorm2d(self.seed_channels)]
        before = self.seed_channels
        for position, size in enumerate(sizes[1:], start=1):
            after = width if position == len(sizes) - 1 else 2 * width
            layers += [
                Upsample(size),
                nn.Conv2d(before, after, 3, padding=1),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(0.2),
            ]
            before = after
        layers += [nn.Conv2d(before, channels, 3, padding=1), nn.Tanh()]
        self.body = nn.Sequential(*layers)
        self.normalise = nn.BatchNorm2d(channels, affine=False)

    def forward(self, z: Tensor) -> Tensor:
        """Noise (B, latent_dim) to images (B, C, H, W) in the model's own normalisation."""
        seed = self.project(z).reshape(-1, self.seed_channels, *self.seed_size)
        images = self.normalise(self.body(seed))
        return images * self.statistics.scale(images) + self.statistics.shift(images)

    def noise(
        self, count: int, rng: torch.Generator, device: torch.device | str | None = None
    ) -> Tensor:
        """Standard normal z, (count, latent_dim), drawn on rng's device."""
        z = torch.randn(count, self.latent_dim, generator=rng, device=rng.device)
        return z.to(device if device is not None else next(self.parameters()).device)
