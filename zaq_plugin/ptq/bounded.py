"""ReLU with a bound of its own for each channel: what ReLU6 becomes when channels are rescaled."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BoundedReLU(nn.Module):
    """``min(max(x, 0), bound)``, with one bound per channel.

    Args:
        bound: (channels,).
        axis: Of the channels: 1, or -1 for features.
    """

    bound: Tensor

    def __init__(self, bound: Tensor, axis: int = 1) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("bound", bound.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, *positions) or (n, ..., channels), same shape."""
        behind = x.dim() - 1 - self.axis % x.dim()
        bound = self.bound.to(x.dtype).reshape(-1, *[1] * behind)
        return torch.minimum(x.relu(), bound)

    def extra_repr(self) -> str:
        """Channels and the range of the bounds."""
        low, high = float(self.bound.min()), float(self.bound.max())
        return f"channels={len(self.bound)}, bound={low:.4g}..{high:.4g}"
