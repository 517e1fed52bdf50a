"""Image grids as PNG data URIs, written with nothing but zlib."""

from __future__ import annotations

import base64
import struct
import zlib

import torch
from torch import Tensor


def png_bytes(pixels: Tensor) -> bytes:
    """Encodes an image as PNG, lossless.

    Args:
        pixels: uint8, (H, W) grey or (H, W, 3) RGB.

    Raises:
        TypeError: not uint8.
        ValueError: another shape, or no pixel.
    """
    if pixels.dtype != torch.uint8:
        raise TypeError(
            f"png_bytes needs uint8 pixels, got {pixels.dtype}; scale to 0..255 and convert."
        )
    grey = pixels.dim() == 2
    if not (grey or (pixels.dim() == 3 and pixels.shape[2] == 3)) or pixels.numel() == 0:
        raise ValueError(f"png_bytes needs shape (H, W) or (H, W, 3), got {tuple(pixels.shape)}.")
    height, width = pixels.shape[:2]
    lines = pixels.detach().cpu().reshape(height, -1)
    raw = torch.cat([torch.zeros(height, 1, dtype=torch.uint8), lines], 1).numpy().tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if grey else 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(raw, 9))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def tile(images: Tensor, columns: int = 8, gap: int = 1) -> Tensor:
    """Lays images out in rows, white between them.

    Args:
        images: uint8, (N, C, H, W) with C = 1 or 3.
        columns: images a row.
        gap: pixels between two images.

    Returns:
        uint8, (H', W') for one channel, (H', W', 3) for three.

    Raises:
        TypeError: not uint8.
        ValueError: another shape, no image, or no column.
    """
    if images.dtype != torch.uint8:
        raise TypeError(
            f"an image grid needs uint8 images, got {images.dtype}; undo the normalization, scale "
            "to 0..255, clamp and convert."
        )
    if images.dim() != 4 or images.shape[1] not in (1, 3) or images.numel() == 0:
        raise ValueError(
            f"an image grid needs shape (N, 1 or 3, H, W), got {tuple(images.shape)}; "
            "for other channels choose one or three of them."
        )
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}.")
    count, channels, height, width = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    canvas = torch.full(
        (channels, rows * (height + gap) - gap, columns * (width + gap) - gap),
        255,
        dtype=torch.uint8,
    )
    for index, image in enumerate(images.detach().cpu()):
        top = index // columns * (height + gap)
        left = index % columns * (width + gap)
        canvas[:, top : top + height, left : left + width] = image
    return canvas[0] if channels == 1 else canvas.permute(1, 2, 0).contiguous()


def image_grid(images: Tensor, columns: int = 8) -> str:
    """A grid of images as a ``data:image/png;base64,...`` URI; arguments and errors as `tile`."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(tile(images, columns))).decode()
