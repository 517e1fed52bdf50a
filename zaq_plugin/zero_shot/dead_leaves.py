"""Dead leaves: random shapes that cover one another, with the statistics of natural images.

The model of Matheron and of Lee, Mumford and Huang (IJCV 2001): discs and boxes of all sizes fall
on top of each other, which gives edges, flat regions and the spectrum of photographs, from nothing.
Baradad et al. (NeurIPS 2021) train networks on such images. Here they are what distillation starts
from, and what a model without BatchNorm is shown.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

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
