"""ReLU with a bound of its own for each channel: what ReLU6 becomes when channels are rescaled."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BoundedReLU(nn.Module):
    """``min(max(x, 0), bound)``, with one bound per channel (axis 1).

    Args:
        bound: (channels,).
    """

    bound: Tensor

    def __init__(self, bound: Tensor) -> None:
        super().__init__()
        self.register_buffer("bound", bound.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, *positions), same shape."""
        bound = self.bound.to(x.dtype).reshape(-1, *[1] * (x.dim() - 2))
        return torch.minimum(x.relu(), bound)

    def extra_repr(self) -> str:
        """Channels and the range of the bounds."""
        low, high = float(self.bound.min()), float(self.bound.max())
        return f"channels={len(self.bound)}, bound={low:.4g}..{high:.4g}"
