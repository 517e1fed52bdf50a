from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from zaq_plugin.zero_shot.generator import Generator, Upsample, stage_sizes
from zaq_plugin.zero_shot.images import ImageStatistics


@given(
    channels=st.integers(1, 4),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
)
def test_any_image_shape(channels: int, height: int, width: int) -> None:
    generator = Generator((channels, height, width), latent_dim=4, width=2)
    rng = torch.Generator().manual_seed(0)
    assert generator(generator.noise(3, rng)).shape == (3, channels, height, width)


def test_large_images_start_from_a_small_seed() -> None:
    assert stage_sizes(224, 224) == [(14, 14), (28, 28), (56, 56), (112, 112), (224, 224)]
    assert stage_sizes(360, 480)[0][0] <= 14
    assert stage_sizes(360, 480)[-1] == (360, 480)


def test_the_papers_layers_at_32_pixels() -> None:
    generator = Generator((3, 32, 32), latent_dim=100, width=64)
    assert generator.project.weight.shape == (128 * 8 * 8, 100)
    kinds = [type(layer) for layer in generator.body]
    block = [Upsample, nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU]
    assert kinds == [nn.BatchNorm2d, *block, *block, nn.Conv2d, nn.Tanh]
    widths = [
        (layer.in_channels, layer.out_channels)
        for layer in generator.body
        if isinstance(layer, nn.Conv2d)
    ]
    assert widths == [(128, 128), (128, 64), (64, 3)]
    assert generator.normalise.weight is None
    assert generator.normalise.bias is None


def test_images_have_the_models_statistics() -> None:
    mean, std = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)
    statistics = ImageStatistics(mean, std)
    torch.manual_seed(0)
    generator = Generator((3, 16, 16), latent_dim=8, width=4, statistics=statistics)
    images = generator(generator.noise(16, torch.Generator().manual_seed(1)))
    pixels = images.detach().double().numpy() * np.reshape(std, (1, 3, 1, 1)) + np.reshape(
        mean, (1, 3, 1, 1)
    )
    np.testing.assert_allclose(pixels.mean((0, 2, 3)), (0.485, 0.456, 0.406), atol=1e-4)
    np.testing.assert_allclose(pixels.std((0, 2, 3)), (0.229, 0.224, 0.225), atol=1e-3)


def test_noise_is_fixed_by_its_seed() -> None:
    generator = Generator((1, 8, 8), latent_dim=5, width=2)
    first, again, other = (
        generator.noise(2, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_clamp_keeps_pixels_between_black_and_white() -> None:
    statistics = ImageStatistics((0.5,), (0.25,))
    x = torch.tensor([-9.0, 0.0, 9.0]).reshape(1, 1, 1, 3)
    assert statistics.clamp(x).flatten().tolist() == [-2.0, 0.0, 2.0]


def test_one_value_serves_all_channels() -> None:
    assert ImageStatistics.for_channels(3, [0.5], [0.5]) == ImageStatistics((0.5,) * 3, (0.5,) * 3)


def test_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match=r"image_shape must be \(channels, height, width\)"):
        Generator((3, 0, 8))
    with pytest.raises(ValueError, match="latent_dim and width must be at least 1"):
        Generator((3, 8, 8), latent_dim=0)
    with pytest.raises(ValueError, match="statistics are for 3 channels, image_shape has 1"):
        Generator((1, 8, 8), statistics=ImageStatistics())
    with pytest.raises(ValueError, match="mean has 2 values for images of 3 channels"):
        ImageStatistics.for_channels(3, [0.5, 0.5])
    with pytest.raises(ValueError, match="std must be positive"):
        ImageStatistics((0.5,), (0.0,))
