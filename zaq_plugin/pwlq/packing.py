"""Dense packing of codes: n codes of k bits in ceil(n k / 8) bytes, least significant bit first."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_WIDTH = 16


def _check_width(width: int) -> None:
    if not isinstance(width, int) or not 1 <= width <= MAX_WIDTH:
        raise ValueError(f"width must be from 1 to {MAX_WIDTH} bits; got {width!r}.")


def packed_size(count: int, width: int) -> int:
    """Bytes of ``count`` codes of ``width`` bits: ceil(count * width / 8)."""
    return (count * width + 7) // 8


def pack_codes(codes: Tensor, width: int) -> Tensor:
    """Pack codes densely.

    Args:
        codes: integer tensor of any shape with values in [0, 2^width), read in row-major order.
        width: bits per code, 1 to 16.

    Returns:
        uint8 tensor of ceil(n * width / 8) bytes; unused bits of the last byte are zero.

    Raises:
        TypeError: if codes is no integer tensor.
        ValueError: if width is out of range, or a code does not fit.
    """
    _check_width(width)
    if codes.is_floating_point() or codes.is_complex():
        raise TypeError(f"codes must be an integer tensor; got {codes.dtype}.")
    flat = codes.reshape(-1).to(torch.int32)
    if flat.numel() and (int(flat.min()) < 0 or int(flat.max()) >= 2**width):
        raise ValueError(
            f"codes must lie in [0, {2**width - 1}] to fit {width} bits; "
            f"got {int(flat.min())} to {int(flat.max())}."
        )
    # Eight codes fill exactly `width` bytes, so groups of eight are independent.
    groups = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).view(-1, 8)
    packed = torch.zeros(groups.shape[0], width, dtype=torch.int32, device=codes.device)
    for position in range(8):
        bit = position * width
        value = groups[:, position] << (bit % 8)
        for byte in range(bit // 8, (bit + width - 1) // 8 + 1):
            packed[:, byte] |= (value >> (8 * (byte - bit // 8))) & 0xFF
    return packed.to(torch.uint8).reshape(-1)[: packed_size(flat.numel(), width)]


def unpack_codes(packed: Tensor, width: int, count: int) -> Tensor:
    """Undo `pack_codes`.

    Args:
        packed: uint8 tensor of exactly ceil(count * width / 8) bytes.
        width: bits per code.
        count: number of codes.

    Returns:
        (count,) uint8 up to 8 bits, int32 above.

    Raises:
        TypeError: if packed is not uint8.
        ValueError: if width is out of range or the number of bytes does not fit.
    """
    _check_width(width)
    if packed.dtype != torch.uint8:
        raise TypeError(f"packed codes must be uint8; got {packed.dtype}.")
    expected = packed_size(count, width)
    if packed.numel() != expected:
        raise ValueError(
            f"{count} codes of {width} bits take {expected} bytes; got {packed.numel()}. "
            "The data is truncated, or belongs to another shape or width."
        )
    groups = -(-count // 8)
    bytes_ = torch.nn.functional.pad(packed.reshape(-1), (0, groups * width - expected))
    bytes_ = bytes_.view(groups, width).to(torch.int32)
    codes = torch.zeros(groups, 8, dtype=torch.int32, device=packed.device)
    for position in range(8):
        bit = position * width
        for byte in range(bit // 8, (bit + width - 1) // 8 + 1):
            codes[:, position] |= bytes_[:, byte] << (8 * (byte - bit // 8))
        codes[:, position] = (codes[:, position] >> (bit % 8)) & (2**width - 1)
    return codes.reshape(-1)[:count].to(torch.uint8 if width <= 8 else torch.int32)


def entropy_bits(codes: Tensor, levels: int) -> float:
    """Shannon entropy of the codes, bits per code: what ideal entropy coding would take."""
    counts = torch.bincount(codes.reshape(-1), minlength=levels).double()
    share = counts[counts > 0] / counts.sum()
    return float(-(share * torch.log2(share)).sum()) + 0.0
