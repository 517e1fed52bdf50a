"""Fake-quantizers with nothing to decide: what exporters can follow.

NNCF strips to torch's ``FakeQuantize``, which looks into its own buffers at every call to see
whether it is switched on; ``torch.export`` cannot follow that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class StaticWeight(nn.Module):
    """A weight that lies on ``scale * k`` already, said in torch's fake-quantize operator.

    NNCF's own per-channel activations become one, too; ``weight`` is empty then.

    Args:
        scale: (channels,) float32.
        zero_point: (channels,) int32.
        axis: Axis of the channels; None for one scale per tensor.
        weight: Name of the parameter; empty for an activation.
        source: Name of the hook on the layer's input, or None.
        facts: For the audit: label, widths, size, error.
        spec: The number format, or None for NNCF's own int8.
        integers: The smallest and the largest.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(
        self,
        scale: Tensor,
        zero_point: Tensor,
        axis: int | None,
        weight: str,
        source: str | None,
        facts: dict[str, Any],
        spec: Any = None,
        integers: tuple[int, int] = (-128, 127),
    ) -> None:
        super().__init__()
        self.register_buffer("scale", scale.detach().clone())
        self.register_buffer("zero_point", zero_point.detach().clone())
        self.axis, self.weight, self.source = axis, weight, source
        self.facts, self.spec, self.integers = facts, spec, integers

    def forward(self, w: Tensor) -> Tensor:
        """The weight, unchanged but for what the operator says of it; same shape."""
        if self.axis is None:
            return torch.fake_quantize_per_tensor_affine(
                w, float(self.scale), int(self.zero_point), *self.integers
            )
        return torch.fake_quantize_per_channel_affine(
            w, self.scale, self.zero_point, self.axis, *self.integers
        )

    def extra_repr(self) -> str:
        """The weight and its format."""
        return f"{self.weight}, {self.facts['spec']}"


class StaticActivation(nn.Module):
    """A uniform per-tensor grid in Python numbers.

    Fewer than 8 bits are said as a clamp to the grid's ends and an 8-bit grid of the same step:
    the same values, in operators that every runtime knows.

    Args:
        scale: The step.
        zero_point: The integer that stands for 0.
        low, high: Integers in use.
    """

    def __init__(self, scale: float, zero_point: int, low: int, high: int) -> None:
        super().__init__()
        self.scale, self.zero_point = scale, zero_point
        self.low, self.high = low, high

    @property
    def bits(self) -> int:
        """Width of the grid."""
        return (self.high - self.low).bit_length()

    def forward(self, x: Tensor) -> Tensor:
        """The activation on its grid; same shape."""
        whole = (-128, 127) if self.low < 0 else (0, 255)
        if (self.low, self.high) != whole:
            ends = ((q - self.zero_point) * self.scale for q in (self.low, self.high))
            x = torch.clamp(x, *ends)
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, *whole)

    def extra_repr(self) -> str:
        """Width and grid."""
        return f"bits={self.bits}, scale={self.scale:.4g}, zero_point={self.zero_point}"
