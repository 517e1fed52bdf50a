"""What a layer's weights multiply: its inputs as columns, and their second moments.

A convolution multiplies every patch of its input with the same weights; one patch, in the order of
a weight's elements, is one sample x of the products ``W x``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zaq_plugin.ptq.fold_arithmetic import CONVOLUTIONS, wide_dtype

ROWS = 1 << 15
"""Patches that are looked at in one batch, more than any layer of a usual network has weights."""
CHUNK = 1 << 24
"""Elements of patches that are in memory at once."""


def has_columns(layer: nn.Module) -> bool:
    """Whether a layer is one of those that multiply patches: linear, or a convolution."""
    return isinstance(layer, (*CONVOLUTIONS, nn.Linear))


class InputMoments:
    """Second moments ``E[x x^T]`` of a layer's inputs, for each group of a convolution.

    Args:
        layer: Linear, or a convolution that is not transposed.
        rng: CPU source of the patches that are looked at, where there are too many.
        rows: Patches of a batch at most.
    """

    def __init__(self, layer: nn.Module, rng: torch.Generator, rows: int = ROWS) -> None:
        self.layer, self.rng, self.rows = layer, rng, rows
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, x: Tensor) -> None:
        """Take a batch of inputs into account."""
        if isinstance(self.layer, nn.Linear):
            flat = x.detach().reshape(1, -1, x.shape[-1])
            chosen = self._choose(flat.shape[1], self.rows).to(x.device)
            self._take(flat[:, chosen])
            return
        layer: Any = self.layer
        if x.dim() == layer.weight.dim() - 1:
            x = x.unsqueeze(0)
        windows = _windows(layer, x.detach())
        rank, groups = x.dim() - 2, int(layer.groups)
        sizes = windows.shape[2 : 2 + rank]
        positions = self._choose(sizes.numel(), max(1, self.rows // len(x))).to(x.device)
        where: tuple[Any, ...] = torch.unravel_index(positions, sizes)
        picked = windows[(slice(None), slice(None), *where)]
        step = max(1, CHUNK // max(1, picked[:1].numel()))
        for part in picked.split(step):  # (n, channels, positions, *kernel)
            patches = part.movedim(2, 1).reshape(-1, groups, *_one_group(part, groups))
            self._take(patches.movedim(1, 0).flatten(2))

    def mean(self) -> Tensor:
        """(groups, n, n) in float64; n is the number of one output channel's weights."""
        if self._sum is None:
            raise ValueError("InputMoments has seen no batch")
        return self._sum / self._count

    def _choose(self, available: int, wanted: int) -> Tensor:
        if available <= wanted:
            return torch.arange(available)
        return torch.randperm(available, generator=self.rng)[:wanted]

    def _take(self, columns: Tensor) -> None:
        """(groups, samples, n)."""
        if columns.dtype in (torch.float16, torch.bfloat16):
            columns = columns.float()
        found = (columns.mT @ columns).to(wide_dtype(columns))
        self._sum = found if self._sum is None else self._sum + found
        self._count += columns.shape[1]


def _one_group(part: Tensor, groups: int) -> Sequence[int]:
    return (part.shape[1] // groups, *part.shape[3:])


def _windows(layer: Any, x: Tensor) -> Tensor:
    """A view (n, channels, *output size, *kernel) of all patches of a convolution."""
    rank = x.dim() - 2
    if isinstance(layer.padding, str):
        reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        same = layer.padding == "same"
        pads = [(r // 2, r - r // 2) if same else (0, 0) for r in reach]
    else:
        pads = [(p, p) for p in layer.padding]
    flat = [p for pair in reversed(pads) for p in pair]
    if any(flat):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, flat, mode=mode)
    for i in range(rank):
        reach_i = layer.dilation[i] * (layer.kernel_size[i] - 1) + 1
        x = x.unfold(2 + i, reach_i, layer.stride[i])
    every: tuple[Any, ...] = tuple(slice(None, None, d) for d in layer.dilation)
    return x[(..., *every)]
