"""Weights that one grid per channel does not describe: widths per channel, and two tensors.

Both stand where `simulate` puts a `PWLQPerChannelFakeQuantize`, so that calibration, bias
correction and the audit work with them. They are fixed: neither reconstruction nor training can
move them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from zaq_plugin.fake_quantize import PWLQPerChannelFakeQuantize
from zaq_plugin.pwlq import (
    PWLQTensor,
    QuantSpec,
    correct_mean_std,
    quantize,
    sqnr_db,
)
from zaq_plugin.pwlq.kernels import from_rows, to_rows
from zaq_plugin.student import QuantLayer


class CompoundFakeQuantize(PWLQPerChannelFakeQuantize):
    """A weight that is put together from several quantized tensors, once and for all.

    Args:
        spec: The grid that was asked for.
        ch_axis: Axis of the output channels.
        weight: The float weight.
    """

    values: Tensor

    def __init__(self, spec: QuantSpec, ch_axis: int | None, weight: Tensor) -> None:
        super().__init__(spec, ch_axis)
        self.tensors: list[PWLQTensor] = []
        with torch.no_grad():
            self.register_buffer("values", self._build(weight.detach()))
        self.to(weight.device)
        self.extra_bytes = 0
        self.sqnr_db = sqnr_db(weight.detach(), self.values)
        self.disable_observer()

    def _build(self, weight: Tensor) -> Tensor:
        """Fill ``tensors`` and return what they make of the weight, in its shape."""
        raise NotImplementedError

    @property
    def remark(self) -> str:
        """What makes it special, for the audit."""
        raise NotImplementedError

    def forward(self, w: Tensor) -> Tensor:
        """The quantized weight; w itself counts only while fake quantization is off."""
        return self.values.to(w) if self.switches()[1] else w

    @property
    def mac_bits(self) -> float:
        """Of the multiplier: the widest."""
        return max(t.mac_bits for t in self.tensors)

    @property
    def stored_bits(self) -> float:
        """Bits of a weight's codes, in the mean over the weights."""
        bits = sum(t.stored_bits * t.codes.numel() for t in self.tensors)
        return bits / self.values.numel()

    @property
    def stored_bytes(self) -> int:
        """Codes, levels and widths."""
        return sum(t.stored_bytes for t in self.tensors) + self.extra_bytes

    @property
    def entropy_bits(self) -> float:
        """Of the codes, in the mean over the weights."""
        bits = sum(t.entropy_bits * t.codes.numel() for t in self.tensors)
        return bits / self.values.numel()


class AllocatedFakeQuantize(CompoundFakeQuantize):
    """A width for each channel, and optionally ACIQ's bias correction.

    Args:
        spec: The grid at its mean width.
        ch_axis: Axis of the output channels.
        weight: The float weight.
        widths: (channels,) stored bits of each channel.
        match: Match every channel's mean and standard deviation (ACIQ, section 4); see
            `correct_mean_std`.
    """

    def __init__(
        self, spec: QuantSpec, ch_axis: int, weight: Tensor, widths: Tensor, match: bool
    ) -> None:
        self._widths, self._match = widths, match
        super().__init__(spec, ch_axis, weight)
        self.extra_bytes = len(widths)  # a byte says how wide a channel is

    def _build(self, weight: Tensor) -> Tensor:
        assert self.ch_axis is not None  # a width for each channel
        rows = to_rows(weight, self.ch_axis)
        levels = torch.empty_like(rows)
        for width in self._widths.unique().tolist():
            chosen = self._widths == width
            part = weight.movedim(self.ch_axis, 0)[chosen].contiguous()
            tensor = quantize(part, self.spec.with_stored_bits(int(width)), 0)
            if self._match:
                moved = correct_mean_std(tensor, part)
                # Its levels are the old ones times a factor plus a shift: two numbers a channel.
                levels[chosen] = to_rows(moved.dequantize(), 0)
            else:
                levels[chosen] = to_rows(tensor.dequantize(), 0)
            self.tensors.append(tensor)
        return from_rows(levels, weight, self.ch_axis)

    @property
    def stored_bytes(self) -> int:
        """Codes, levels, widths, and two numbers a channel where moments are matched."""
        return super().stored_bytes + (8 * len(self._widths) if self._match else 0)

    @property
    def remark(self) -> str:
        """The widths in use."""
        low, high = int(self._widths.min()), int(self._widths.max())
        text = f"{low} to {high} stored bits by channel"
        return text + (", mean and deviation matched" if self._match else "")


class ResidualFakeQuantize(CompoundFakeQuantize):
    """Two tensors: ``W ~ Q(W) + Q(W - Q(W))``; both are stored and both are multiplied.

    Args:
        spec: The grid of either.
        ch_axis: Axis of the output channels.
        weight: The float weight.
    """

    def _build(self, weight: Tensor) -> Tensor:
        first = quantize(weight, self.spec, self.ch_axis)
        rest = weight.float() - first.dequantize(torch.float32)
        second = quantize(rest, self.spec, self.ch_axis)
        self.tensors = [first, second]
        return (first.dequantize(torch.float32) + second.dequantize(torch.float32)).to(weight)

    @property
    def remark(self) -> str:
        """That there are two."""
        return "two tensors, the second for what the first leaves: twice the multiplications"


def install(layer: QuantLayer, quantizer: CompoundFakeQuantize) -> None:
    """Put a compound quantizer in the place of the one that `simulate` attached."""
    layer.slot.swap(quantizer.train(layer.quantizer.training))


def compound_layers(student: nn.Module) -> Iterator[tuple[str, CompoundFakeQuantize]]:
    """Name and quantizer of every layer whose weight is put together."""
    for name, module in student.named_modules():
        if isinstance(module, CompoundFakeQuantize):
            yield name.split(".parametrizations")[0], module
