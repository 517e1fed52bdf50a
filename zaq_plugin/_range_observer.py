"""Base of the observers of activations: a running range and the uniform grid over it.

The range of many calls is decided from the ranges of single ones by a tally. Calls whose ranges
differ as batches of one signal do are averaged, as the PWLQ paper does. An observer sees calls, not
batches: a layer that is called on signals of different size within one pass shows ranges that lie
further apart, and no average covers the largest. There the range is the widest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from zaq_plugin._host_module import FLOAT32_EPS, HostModule, refuse_dynamic
from zaq_plugin.pwlq import uniform_qparams
from zaq_plugin.weight_observer import SIGNED

SPREAD = 0.25
"""Standard deviation of the ends of calls' ranges, as a share of the mean range, up to which calls
are batches of one signal. Two signals in turn pass it when one is less than 0.6 of the other."""

SIZE = 7
"""Numbers of a tally: count; mean, squared deviations and extreme of the lower and upper ends."""


def empty_tally(device: torch.device | str | None = None) -> Tensor:
    """A tally of no calls, (`SIZE`,) float32."""
    return torch.zeros(SIZE, device=device)


Numbers = Any
"""A tensor, or a numpy array that shares its memory: the functions below take and give either."""


def namespace(numbers: Numbers) -> Any:
    """The library whose functions take these numbers."""
    return torch if isinstance(numbers, Tensor) else np


def begin_with(tally: Numbers, count: Numbers, low: Numbers, high: Numbers) -> Numbers:
    """The tally, or if it is empty one of ``count`` calls that all had this range; (1,) each."""
    xp = namespace(tally)
    zero = xp.zeros_like(low)
    calls = xp.asarray(count, dtype=xp.float32)
    start = xp.concatenate([calls, low, high, zero, zero, low, high])
    return xp.where((tally[:1] == 0) & (count > 0), start, tally)


def add_call(tally: Numbers, low: Numbers, high: Numbers) -> Numbers:
    """The tally with one more call's range; ends are float32, (1,)."""
    xp = namespace(tally)
    count, means, squares, ends = tally[:1], tally[1:3], tally[3:5], tally[5:7]
    new = xp.concatenate([low, high])
    ends = xp.where(count == 0, new, ends)
    ends = xp.concatenate([xp.minimum(ends[:1], low), xp.maximum(ends[1:], high)])
    step = new - means
    means = means + step / (count + 1)
    squares = squares + step * (new - means)
    return xp.concatenate([count + 1, means, squares, ends])


def range_of(
    tally: Numbers, pending: tuple[Numbers, Numbers, Numbers] | None = None
) -> tuple[Numbers, Numbers]:
    """(low, high) that stands for all calls, (1,) each.

    Args:
        tally: of complete calls.
        pending: range of calls that are not complete yet, and their weight in [0, 1); (1,) each.
    """
    xp = namespace(tally)
    count, low, high = tally[:1], tally[1:2], tally[2:3]
    if pending is not None:
        below, above, weight = pending
        share = xp.where(weight > 0, weight / (count + weight), xp.zeros_like(weight))
        low = xp.where(weight > 0, low + (below - low) * share, low)
        high = xp.where(weight > 0, high + (above - high) * share, high)
        # Alone, without the roundings of a sum with nothing.
        low, high = xp.where(share == 1, below, low), xp.where(share == 1, above, high)
    deviation = xp.sqrt(tally[3:5].max() / (count + (count == 0)))
    apart = deviation > SPREAD * (tally[2:3] - tally[1:2])
    low = xp.where(apart, xp.minimum(tally[5:6], low), low)
    return low, xp.where(apart, xp.maximum(tally[6:7], high), high)


UNSIGNED = (torch.quint8, torch.uint8)


def _integer_range(
    owner: object,
    dtype: torch.dtype,
    bits: int | None,
    symmetric: bool,
    quant_min: int | None,
    quant_max: int | None,
) -> tuple[int, int]:
    """quant_min and quant_max: given ones win, else those of ``bits`` (8 if None).

    Unsigned types start at 0; signed types are ``-2^(b-1) .. 2^(b-1)-1``, symmetric ones without
    the lowest value.
    """
    name = type(owner).__name__
    if dtype not in SIGNED + UNSIGNED:
        raise ValueError(
            f"{name}: dtype must be torch.quint8, torch.uint8, torch.qint8 or torch.int8; "
            f"got {dtype}."
        )
    if (quant_min is None) != (quant_max is None):
        raise ValueError(
            f"{name}: give both quant_min and quant_max or neither; "
            f"got {quant_min} and {quant_max}."
        )
    if bits is not None and (isinstance(bits, bool) or not isinstance(bits, int)):
        raise TypeError(f"{name}: bits must be an int from 2 to 8; got {bits!r}.")
    if bits is not None and not 2 <= bits <= 8:
        raise ValueError(f"{name}: bits must be from 2 to 8; got {bits}.")
    low, high = (-128, 127) if dtype in SIGNED else (0, 255)
    if quant_min is not None and quant_max is not None:
        if not low <= quant_min < quant_max <= high:
            raise ValueError(
                f"{name}: quant_min < quant_max must lie within {low} and {high} for {dtype}; "
                f"got {quant_min} and {quant_max}."
            )
        if bits is not None and quant_max - quant_min + 1 > 2**bits:
            raise ValueError(
                f"{name}: {quant_min}..{quant_max} does not fit bits={bits}; give one of the two."
            )
        return quant_min, quant_max
    count = 2 ** (8 if bits is None else bits)
    if dtype in UNSIGNED:
        return 0, count - 1
    return (1 - count // 2 if symmetric else -count // 2), count // 2 - 1


class RangeObserver(HostModule):
    """Running range of a tensor and the uniform per-tensor grid over it.

    Args:
        bits: Width of the grid, 2 to 8; 8 if neither it nor quant_min and quant_max are given.
        symmetric: Whether the grid is symmetric around zero.
        dtype: Integer type of the host: ``torch.quint8``/``qint8`` for torch.ao, ``torch.uint8``/
            ``int8`` for torchao.
        quant_min, quant_max: The integers to use, instead of those that follow from bits.
        qscheme: ``torch.per_tensor_affine`` or ``torch.per_tensor_symmetric``, the hosts' word for
            ``symmetric``; wins over it.
        eps: Smallest scale. The default keeps small activations alive; qnnpack wants ``2**-12``.
        is_dynamic: Must be False.
        factory_kwargs: ``device`` of the buffers; its dtype is ignored, ranges stay float32.

    Attributes:
        margin: What the range is multiplied by before a grid is laid over it.

    Raises:
        ValueError: a width, type or scheme that does not exist.
    """

    margin: float = 1.0
    min_val: Tensor
    max_val: Tensor
    num_batches: Tensor
    tally: Tensor

    def __init__(
        self,
        bits: int | None = None,
        symmetric: bool = False,
        dtype: torch.dtype = torch.quint8,
        quant_min: int | None = None,
        quant_max: int | None = None,
        qscheme: torch.qscheme | None = None,
        eps: float = FLOAT32_EPS,
        is_dynamic: bool = False,
        factory_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        refuse_dynamic(self, is_dynamic)
        if qscheme not in (None, torch.per_tensor_affine, torch.per_tensor_symmetric):
            raise ValueError(
                f"{type(self).__name__} has one grid per tensor; got qscheme={qscheme}. Use "
                "torch.per_tensor_affine or torch.per_tensor_symmetric."
            )
        if qscheme is not None:
            symmetric = qscheme == torch.per_tensor_symmetric
        self.quant_min, self.quant_max = _integer_range(
            self, dtype, bits, symmetric, quant_min, quant_max
        )
        self.symmetric = symmetric
        self.qscheme = torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
        self.dtype = dtype
        self.eps = eps
        self.is_dynamic = False
        device = (factory_kwargs or {}).get("device")
        self.register_buffer("min_val", torch.zeros((), device=device))
        self.register_buffer("max_val", torch.zeros((), device=device))
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("tally", empty_tally(device), persistent=False)

    @property
    def bits(self) -> int:
        """Width of the grid: the smallest b with quant_max - quant_min < 2^b."""
        return (self.quant_max - self.quant_min).bit_length()

    def batch_range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(low, high) of one batch, two float32 scalars."""
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        """Arguments beside the grid's with which another observer takes ranges as this one does."""
        return {}

    def forward(self, x: Tensor) -> Tensor:
        """Take a batch of any shape into account; returns it unchanged."""
        if x.numel() == 0:
            return x
        with torch.no_grad():
            self._observe(x.detach().float())
            self.num_batches += 1
        return x

    def _observe(self, x: Tensor) -> None:
        """Take one call's range into account; see `zaq_plugin._range_observer`."""
        known = begin_with(self.tally, *(b.reshape(1) for b in self._range_before()))
        self.tally.copy_(add_call(known, *(end.reshape(1) for end in self.batch_range(x))))
        low, high = range_of(self.tally)
        self.min_val.copy_(low[0])
        self.max_val.copy_(high[0])

    def _range_before(self) -> tuple[Tensor, Tensor, Tensor]:
        """How many calls there were, and their range: a tally that was not saved goes on there."""
        return self.num_batches, self.min_val, self.max_val

    def reset_min_max_vals(self) -> None:
        """Forget everything seen."""
        self.min_val.zero_()
        self.max_val.zero_()
        self.num_batches.zero_()
        self.tally.zero_()

    def qparams(self) -> tuple[Tensor, Tensor]:
        """`calculate_qparams` without its checks; float32 and int32, shape (1,)."""
        low, high = self.min_val, self.max_val
        if self.margin != 1:
            low, high = low * self.margin, high * self.margin
        scale, zero_point = uniform_qparams(
            low,
            high,
            self.bits,
            self.symmetric,
            self.quant_min,
            self.quant_max,
            self.eps,
        )
        return scale.reshape(1), zero_point.reshape(1)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale (float32, shape (1,)) and zero point (int32, shape (1,)).

        Raises:
            ValueError: nothing was observed, or something that is not finite.
        """
        name = type(self).__name__
        if int(self.num_batches) == 0:
            raise ValueError(
                f"{name} has seen no data, so there is no range to quantize with. Run calibration "
                "batches through the prepared model before converting it."
            )
        if not bool(torch.isfinite(self.min_val) & torch.isfinite(self.max_val)):
            raise ValueError(
                f"{name} has seen NaN or infinite activations: its range is "
                f"[{float(self.min_val)}, {float(self.max_val)}]. Check the calibration batches "
                "and the model's weights."
            )
        return self.qparams()

    def extra_repr(self) -> str:
        """Bits, integers and the range so far."""
        return (
            f"bits={self.bits}, symmetric={self.symmetric}, dtype={self.dtype}, "
            f"quant_min={self.quant_min}, quant_max={self.quant_max}, "
            f"range=[{float(self.min_val):.4g}, {float(self.max_val):.4g}]"
        )
