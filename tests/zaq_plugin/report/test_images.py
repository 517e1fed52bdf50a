"""PNG by zlib alone, read back by an independent decoder."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from zaq_plugin.report.images import image_grid, png_bytes, tile


def decode(data: bytes) -> torch.Tensor:
    """(C, H, W) uint8."""
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(data))))
    return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (1, 1)])
def test_png_is_lossless(shape):
    pixels = torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    expected = pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)
    assert torch.equal(decode(png_bytes(pixels)), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_holds_every_image_at_its_place(channels):
    images = torch.randint(
        0, 255, (5, channels, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    uri = image_grid(images, columns=3)
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    grid = decode(base64.b64decode(data))
    assert grid.shape == (channels, 4 * 2 + 1, 6 * 3 + 2)
    for index, image in enumerate(images):
        top, left = index // 3 * 5, index % 3 * 7
        assert torch.equal(grid[:, top : top + 4, left : left + 6], image)
    assert (grid[:, 4] == 255).all()
    assert (grid[:, 5:, 14:] == 255).all()


def test_fewer_images_than_columns_give_a_narrow_grid():
    assert tile(torch.zeros(2, 1, 3, 3, dtype=torch.uint8), columns=8).shape == (3, 7)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(1, 1, 2, 2), TypeError, "needs uint8 images, got torch.float32; undo the"),
        (torch.zeros(1, 2, 2, 2, dtype=torch.uint8), ValueError, r"got \(1, 2, 2, 2\)"),
        (torch.zeros(0, 1, 2, 2, dtype=torch.uint8), ValueError, r"got \(0, 1, 2, 2\)"),
        (torch.zeros(2, 2, dtype=torch.uint8), ValueError, r"shape \(N, 1 or 3, H, W\)"),
    ],
)
def test_grid_refuses_what_it_cannot_show(images, error, message):
    with pytest.raises(error, match=message):
        tile(images)


def test_other_refusals():
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        tile(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), columns=0)
    with pytest.raises(TypeError, match="png_bytes needs uint8 pixels, got torch.int64"):
        png_bytes(torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"png_bytes needs shape .* got \(2, 2, 4\)"):
        png_bytes(torch.zeros(2, 2, 4, dtype=torch.uint8))
