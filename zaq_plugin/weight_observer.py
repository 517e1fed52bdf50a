"""The observer of weights: breakpoints and clip of each output channel."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zaq_plugin._host_module import FLOAT32_EPS, HostModule, outside_graphs, refuse_dynamic
from zaq_plugin.pwlq import PWLQSpec, QuantSpec, solve_edges
from zaq_plugin.pwlq.functional import complete_edges
from zaq_plugin.pwlq.levels import build_grid

__all__ = ["PWLQPerChannelObserver", "WeightFormat", "qparams_of", "solve_once", "weight_format"]

SIGNED = (torch.qint8, torch.int8)

_MEMORY = 4096
_solved: OrderedDict[tuple[Any, ...], Tensor] = OrderedDict()


def solve_once(w: Tensor, spec: QuantSpec, axis: int | None) -> Tensor:
    """`zaq_plugin.pwlq.solve_edges`, remembered for the last few thousand weights by content.

    With the reach of the int8 grid on which this weight does not overflow, where the format is
    guarded: (sides, channels, n + 2); see `zaq_plugin.pwlq.overflow`.
    Calibration, bias correction, audit and conversion all ask for the same weight's edges, on
    different copies of it; the search costs a hundred times what hashing does.
    """
    data = w.detach().cpu().reshape(-1)
    if data.stride() != (1,):  # strides of axes of length 1 may be anything
        data = data.clone(memory_format=torch.contiguous_format)
    digest = hashlib.blake2b(data.view(torch.uint8).numpy().data, digest_size=16).digest()
    key = (digest, tuple(w.shape), w.dtype, spec, axis)
    edges = _solved.get(key)
    if edges is None:
        edges = complete_edges(w, solve_edges(w, spec, axis=axis), spec, axis).cpu()
        _solved[key] = edges
        if len(_solved) > _MEMORY:
            _solved.popitem(last=False)
    else:
        _solved.move_to_end(key)
    return edges.to(w.device, copy=True)


@dataclass(frozen=True)
class WeightFormat:
    """How to put a weight on its grid: what a converter needs to know beyond scale and zero point.

    Attributes:
        spec: The number format.
        ch_axis: The channels' axis, or None for one grid per tensor.
        edges: (sides, channels, n + 1) breakpoints and clip; see `zaq_plugin.pwlq.solve_edges`. One
            column more is the reach of the int8 grid, see `zaq_plugin.pwlq.overflow`.
    """

    spec: QuantSpec
    ch_axis: int | None
    edges: Tensor


def weight_format(scale: object) -> WeightFormat | None:
    """The format that came with a scale of `PWLQPerChannelObserver.calculate_qparams`, or None.

    torch.ao's FX conversion hands a layer's converter the scale that ``calculate_qparams``
    returned, the very object, and nothing else of ours; so the format travels on it.
    """
    tag = getattr(scale, "_zaq_format", None)
    return tag if isinstance(tag, WeightFormat) else None


class PWLQPerChannelObserver(HostModule):
    """Chooses breakpoints and clip of each output channel of a weight.

    `calculate_qparams` speaks of the int8 grid below the format: every level is ``scale * int8``,
    so the host's own symmetric per-channel quantizer reproduces a snapped weight bit for bit.

    Args:
        spec: The number format; a `PWLQSpec`, or a `UniformSpec` for layers that stay uniform.
        ch_axis: Axis of the channels; None for one grid per tensor (transposed convolutions on
            fbgemm).
        dtype: ``torch.qint8`` for torch.ao, ``torch.int8`` for torchao.
        quant_min, quant_max: Accepted for the hosts' sake; levels lie within -127 and 127.
        qscheme: Accepted for the hosts' sake; must agree with ch_axis.
        eps, is_dynamic, factory_kwargs: As in `MinMaxObserver`.

    Raises:
        ValueError: a format or integer range that int8 kernels cannot hold.
        TypeError: spec is no spec.
    """

    resizable = ("edges",)
    edges: Tensor

    def __init__(
        self,
        spec: QuantSpec | None = None,
        ch_axis: int | None = 0,
        dtype: torch.dtype = torch.qint8,
        quant_min: int | None = None,
        quant_max: int | None = None,
        qscheme: torch.qscheme | None = None,
        eps: float = FLOAT32_EPS,
        is_dynamic: bool = False,
        factory_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        refuse_dynamic(self, is_dynamic)
        spec = PWLQSpec() if spec is None else spec
        if not isinstance(spec, QuantSpec):
            raise TypeError(
                f"{type(self).__name__}: spec must be a format such as a PWLQSpec; "
                f"got {type(spec).__name__}."
            )
        if dtype not in SIGNED:
            raise ValueError(
                f"{type(self).__name__}: weights are torch.qint8 (torch.ao) or torch.int8 "
                f"(torchao); got {dtype}."
            )
        expected = torch.per_tensor_symmetric if ch_axis is None else torch.per_channel_symmetric
        if qscheme is not None and qscheme != expected:
            raise ValueError(
                f"{type(self).__name__}: ch_axis={ch_axis} goes with qscheme={expected}; "
                f"got {qscheme}."
            )
        low = -127 if quant_min is None else quant_min
        high = 127 if quant_max is None else quant_max
        if low > -127 or high < 127:
            raise ValueError(
                f"{type(self).__name__}: the levels need the integers -127..127; got {low}..{high}."
                " The format's width is the spec's bits, not quant_min and quant_max."
            )
        self.spec: QuantSpec = spec
        self.ch_axis = ch_axis
        self.dtype = dtype
        self.quant_min, self.quant_max = low, high
        self.qscheme = expected
        self.eps = eps
        self.is_dynamic = False
        device = (factory_kwargs or {}).get("device")
        self.register_buffer("edges", torch.empty(0, device=device))

    @outside_graphs
    def observe(self, w: Tensor) -> None:
        """Solve for the edges of this weight."""
        self.keep(solve_once(w.detach(), self.spec, self.ch_axis))

    @outside_graphs
    @torch.no_grad()
    def complete(self, w: Tensor) -> None:
        """Give edges that know of no reach, as files of earlier versions, the one of this weight.

        See `zaq_plugin.pwlq.overflow`; edges that have one stay.
        """
        if self.edges.numel():
            self.keep(complete_edges(w.detach(), self.edges, self.spec, self.ch_axis))

    def keep(self, edges: Tensor) -> None:
        """Take these edges."""
        if self.edges.shape == edges.shape:
            self.edges.copy_(edges)
        else:
            self.edges.data = edges.detach().to(self.edges.device, torch.float32, copy=True)

    def forward(self, w: Tensor) -> Tensor:
        """Choose the edges for this weight; returns it unchanged."""
        self.observe(w)
        return w

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale (float32) and zero point (int32, zeros), shape (channels,); (1,) per tensor.

        Raises:
            ValueError: no weight was seen, or the format has no int8 levels.
        """
        return qparams_of(self, self.edges)

    def extra_repr(self) -> str:
        """The format."""
        return f"{self.spec.label}, ch_axis={self.ch_axis}, dtype={self.dtype}"


def qparams_of(owner: PWLQPerChannelObserver, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the int8 grid below a format; see `PWLQPerChannelObserver`."""
    name, spec = type(owner).__name__, owner.spec
    if edges.numel() == 0:
        raise ValueError(f"{name} has seen no weight yet; call it with the weight first.")
    if spec.grid != "int8":
        raise ValueError(
            f"{name}: {spec.label} has levels that are no multiples of int8, so no integer kernel "
            "can hold it. Use grid='int8' to convert, or evaluate the prepared model."
        )
    grid = build_grid(edges.detach(), spec)
    if float(grid.values.abs().max()) > 127:
        raise ValueError(
            f"{name}: {spec.label} has integer levels up to {int(grid.values.abs().max())}, but "
            "int8 kernels hold -127..127. Use symmetry='symmetric', or fewer bits."
        )
    scale = grid.scale.clone()
    scale._zaq_format = WeightFormat(spec, owner.ch_axis, edges.detach())  # type: ignore[attr-defined]
    return scale, torch.zeros_like(scale, dtype=torch.int32)
