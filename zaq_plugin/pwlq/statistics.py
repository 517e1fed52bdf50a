"""What quantization did to a tensor: noise and the share of values in the center."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zaq_plugin.pwlq.kernels import cache_blocks, from_rows_shape, select, to_rows


def dequantize(codes: Tensor, codebook: Tensor, scale: Tensor, axis: int | None) -> Tensor:
    """float32 ``codebook[c, code] * scale[c]`` in codes' shape, contiguous."""
    table = codebook.float() * scale.unsqueeze(1)
    rows = to_rows(codes, axis)
    out = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
    for channel, element in cache_blocks(rows):
        select(table[channel], rows[channel, element].int(), out[channel, element])
    return from_rows_shape(out, tuple(codes.shape), axis).contiguous()


def sqnr_db(w: Tensor, quantized: Tensor) -> float:
    """10 log10(sum w^2 / sum (w - quantized)^2), dB; infinite where nothing was lost."""
    signal, noise = w.double(), w.double() - quantized.double()
    return _decibels(float(signal.square().sum()), float(noise.square().sum()))


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def measure(
    w: Tensor,
    codes: Tensor,
    codebook: Tensor,
    scale: Tensor,
    axis: int | None,
    edges: Tensor | None,
) -> tuple[float, float]:
    """Signal to noise (dB) and the share of values with |w| <= p_1 (1 without edges).

    One pass in blocks; sums of a block in float32, their totals in float64.
    """
    table = codebook.float() * scale.unsqueeze(1)
    rows, code_rows = to_rows(w, axis), to_rows(codes, axis)
    signal = noise = center = torch.zeros((), dtype=torch.float64, device=w.device)
    for channel, element in cache_blocks(rows):
        values = rows[channel, element].float()
        levels = select(table[channel], code_rows[channel, element].int())
        signal = signal + values.square().sum().double()
        noise = noise + levels.sub_(values).square_().sum().double()
        if edges is not None:
            upper = edges[0, channel, :1]
            lower = -edges[-1, channel, :1]
            # Written as numbers, comparisons take a quarter of the time that truth values do.
            inside = torch.le(values, upper, out=torch.empty_like(values))
            inside *= torch.ge(values, lower, out=levels)
            center = center + inside.sum(dtype=torch.float64)
    share = 1.0 if edges is None else float(center) / rows.numel()
    return _decibels(float(signal), float(noise)), share
