"""Fake-quantizers with nothing to decide: what exporters can follow.

NNCF strips to torch's ``FakeQuantize``, which looks into its own buffers at every call to see
whether it is switched on; ``torch.export`` cannot follow that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zaq_nncf._compat import QUANTIZED_LIBRARY

assert QUANTIZED_LIBRARY is not None  # torch.ops.quantized_decomposed is there
_ops = torch.ops.quantized_decomposed


class StaticWeight(nn.Module):
    """A weight that lies on ``scale * codes``.

    ``torch.export``, and with it the ONNX exporter, sees torch's fake-quantize operator, from which
    it makes QuantizeLinear and DequantizeLinear. A TorchScript trace, with which OpenVINO reads a
    module, sees the int8 codes and their scale, which OpenVINO keeps as they are.

    Args:
        codes: The weight's integers: -128..127, or 0..255 (NNCF's own, where none is negative).
        scale: (channels,) float32.
        axis: Axis of the channels; None for one scale per tensor.
        weight: Name of the parameter.
        source: Name of the hook on the layer's input, or None.
        facts: For the audit: label, widths, size, error.
        spec: The number format, or None for NNCF's own int8.
        zero_point: The integer that stands for 0: (channels,) int32; all zeros if None.
    """

    own: Tensor | None

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(
        self,
        codes: Tensor,
        scale: Tensor,
        axis: int | None,
        weight: str,
        source: str | None,
        facts: dict[str, Any],
        spec: Any = None,
        zero_point: Tensor | None = None,
    ) -> None:
        super().__init__()
        unsigned = bool((codes > 127).any())
        self.low, self.high = (0, 255) if unsigned else (-128, 127)
        self.register_buffer("codes", codes.to(torch.uint8 if unsigned else torch.int8))
        self.register_buffer("scale", scale.detach().clone().reshape(-1))
        if zero_point is None:
            zero_point = torch.zeros_like(self.scale, dtype=torch.int32)
        self.register_buffer("zero_point", zero_point.detach().clone().reshape(-1).int())
        self.axis, self.weight, self.source = axis, weight, source
        self.facts, self.spec = facts, spec
        self.register_buffer("own", None)
        self._read_numbers()

    def keep_values(self, like: Tensor) -> None:
        """Hold the values here: the parameter keeps its own, because others read it, too."""
        self.register_buffer("own", self.values().to(like))

    def _read_numbers(self) -> None:
        """A single grid in Python numbers: torch.export cannot follow a look into a buffer."""
        single = self.axis is None
        self._numbers = (float(self.scale), int(self.zero_point)) if single else None

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._read_numbers()

    def values(self) -> Tensor:
        """``scale * (codes - zero_point)``, float32."""
        shape = [1] * self.codes.dim()
        if self.axis is not None:
            shape[self.axis] = -1
        codes = self.codes.to(torch.float32)
        if bool(self.zero_point.any()):
            codes = codes - self.zero_point.view(shape)
        return codes * self.scale.view(shape)

    def forward(self, w: Tensor) -> Tensor:
        """The weight; same shape."""
        if torch.jit.is_tracing() and not torch.onnx.is_in_onnx_export():
            return self.values().to(w.dtype)
        w = w if self.own is None else self.own
        if self._numbers is not None:
            return torch.fake_quantize_per_tensor_affine(w, *self._numbers, self.low, self.high)
        axis: Any = self.axis
        return torch.fake_quantize_per_channel_affine(
            w, self.scale, self.zero_point, axis, self.low, self.high
        )

    def extra_repr(self) -> str:
        """The weight and its format."""
        return f"{self.weight}, {self.facts['spec']}"


class StaticChannels(nn.Module):
    """An activation with a grid per channel: NNCF's own, for depthwise convolutions.

    Args:
        scale: (channels,) float32.
        zero_point: (channels,) int32.
        axis: Axis of the channels.
        low, high: Integers in use.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: Tensor, zero_point: Tensor, axis: int, low: int, high: int) -> None:
        super().__init__()
        self.register_buffer("scale", scale.detach().clone())
        self.register_buffer("zero_point", zero_point.detach().clone())
        self.axis, self.low, self.high = axis, low, high

    def forward(self, x: Tensor) -> Tensor:
        """The activation on its grids; same shape."""
        return torch.fake_quantize_per_channel_affine(
            x, self.scale, self.zero_point, self.axis, self.low, self.high
        )


class StaticActivation(nn.Module):
    """A uniform per-tensor grid in Python numbers.

    Fewer than 8 bits are said as a clamp to the grid's ends and an 8-bit grid of the same step:
    the same values, in operators that every runtime knows. While ``torch.export`` looks, a pair of
    quantize and dequantize operators stands for torch's fake-quantize operator, which it cannot
    take with a dynamic batch.

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
        if torch.compiler.is_exporting():
            grid = (self.scale, self.zero_point, *whole)
            dtype = torch.int8 if self.low < 0 else torch.uint8
            codes = _ops.quantize_per_tensor.default(x, *grid, dtype)
            values: Tensor = _ops.dequantize_per_tensor.default(codes, *grid, dtype)
            return values
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, *whole)

    def extra_repr(self) -> str:
        """Width and grid."""
        return f"bits={self.bits}, scale={self.scale:.4g}, zero_point={self.zero_point}"
