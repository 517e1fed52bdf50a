"""Fake-quantizers: they put tensors on a grid and let gradients through.

Weights: `PWLQPerChannelFakeQuantize`. Activations: `ActivationFakeQuantize` (uniform, per tensor,
exact on int8 kernels) and `PWLQActivationFakeQuantize` (simulated only). All of them serve
torch.ao and torchao alike; see `zaq_plugin._host_module`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin._host_module import FakeQuantizeModule, outside_graphs
from zaq_plugin._lsq import lsq
from zaq_plugin.observers import TopKMedianObserver
from zaq_plugin.pwlq import PWLQSpec, QuantSpec, fake_quantize, solve_edges
from zaq_plugin.pwlq.levels import tops_of, with_tops, without_tops
from zaq_plugin.pwlq.ranges import spread_sample
from zaq_plugin.weight_observer import PWLQPerChannelObserver, qparams_of

__all__ = [
    "ActivationFakeQuantize",
    "PWLQActivationFakeQuantize",
    "PWLQPerChannelFakeQuantize",
]

SAMPLE = 1 << 16
"""Values of a batch that `PWLQActivationFakeQuantize` solves on: every n-th one."""


class PWLQPerChannelFakeQuantize(FakeQuantizeModule):
    """Puts a weight on its PWLQ levels, per output channel.

    While the observer is enabled, breakpoints and clip are solved anew as the spec's policy says:
    at each forward in eval mode (where an unchanged weight costs nothing), and at every
    ``solve_every``-th in train mode. ``disable_observer`` freezes them, which is what training at
    length wants. The very first forward solves in any case.

    Args:
        spec: The number format; a `PWLQSpec`, or a `UniformSpec` for layers that stay uniform.
        ch_axis: Axis of the channels; None for one grid per tensor.
        learnable: Train the edges once the observer is disabled: ``p_l = p_{l+1} sigmoid(theta_l)``
            with ``p_{n+1} = m exp(theta_m)``, so that they stay ordered and positive. The
            parameter ``theta`` gets its shape at the first forward and keeps its identity.
        solve_every: See above; the search costs more than a training step of many models.
        observer: Class or factory of the weight observer; `PWLQPerChannelObserver`.
        fake_quant: Whether quantization is on from the start; off for calibration alone.
        observe: Whether the observer is.
        **observer_kwargs: ``dtype``, ``quant_min``, ``factory_kwargs`` ...; see the observer.

    Attributes:
        bias_shift: (output channels,) what bias correction took out of the layer's bias, kept here
            because every quantized layer has one of these in every host; empty if nothing was.
    """

    resizable = ("theta", "bias_shift")
    optional = ("bias_shift",)
    theta: nn.Parameter | None
    bias_shift: Tensor

    def __init__(
        self,
        spec: QuantSpec | None = None,
        ch_axis: int | None = 0,
        learnable: bool = False,
        solve_every: int = 1,
        observer: Callable[..., Any] = PWLQPerChannelObserver,
        fake_quant: bool = True,
        observe: bool = True,
        **observer_kwargs: Any,
    ) -> None:
        super().__init__()
        watch = observer(spec=spec, ch_axis=ch_axis, **observer_kwargs)
        self.activation_post_process: PWLQPerChannelObserver = watch
        self.spec: QuantSpec = watch.spec
        self.ch_axis = ch_axis
        self.dtype, self.qscheme = watch.dtype, watch.qscheme
        self.quant_min, self.quant_max = watch.quant_min, watch.quant_max
        self.eps, self.is_dynamic = watch.eps, watch.is_dynamic
        self.learnable = learnable
        if learnable and self.spec.signed_edges:
            raise ValueError(
                f"{type(self).__name__}: learnable=True trains clip and breakpoints, which "
                f"{self.spec.label} has not; use learnable=False: its levels are solved anew."
            )
        if isinstance(solve_every, bool) or not isinstance(solve_every, int) or solve_every < 1:
            raise ValueError(
                f"{type(self).__name__}: solve_every must be an int >= 1; got {solve_every!r}."
            )
        self.solve_every = solve_every
        self._since_solved = 0
        device = (observer_kwargs.get("factory_kwargs") or {}).get("device")
        self.register_buffer("bias_shift", torch.empty(0))
        self.to(device=device)
        self.enable_fake_quant(fake_quant)
        self.enable_observer(observe)
        theta = nn.Parameter(torch.empty(0, device=device)) if learnable else None
        self.register_parameter("theta", theta)

    @property
    def edges(self) -> Tensor:
        """(sides, channels, n + 1) breakpoints and clip in use; empty before the first forward.

        One column more is the reach of the int8 grid, see `zaq_plugin.pwlq.overflow`.
        """
        observed: Tensor = self.activation_post_process.edges
        if self.theta is None or self.theta.numel() == 0:
            return observed
        solved = without_tops(observed, self.spec)
        upper = solved[..., -1] * self.theta[..., -1].exp()
        columns = [upper]
        for piece in range(solved.shape[-1] - 2, -1, -1):
            upper = upper * self.theta[..., piece].sigmoid()
            columns.append(upper)
        edges = torch.stack(columns[::-1], -1)
        return with_tops(edges, tops_of(observed, self.spec)) if self.spec.guarded else edges

    def forward(self, w: Tensor) -> Tensor:
        """The weight on its levels (or as it came, if fake quantization is off); same shape."""
        observing, quantizing = self.switches()
        if observing or self.activation_post_process.edges.numel() == 0:
            self._observe(w)
        if not quantizing:
            return w
        self._complete(w)
        return fake_quantize(w, self.spec, self.ch_axis, edges=self.edges)

    def _complete(self, w: Tensor) -> None:
        count = self.activation_post_process.edges.shape[-1]
        if self.spec.guarded and count == self.spec.edge_count:
            self.activation_post_process.complete(w)

    @outside_graphs
    def _observe(self, w: Tensor) -> None:
        self._since_solved += 1
        has_edges = self.activation_post_process.edges.numel() > 0
        if has_edges and self.training and self._since_solved < self.solve_every:
            return
        self._since_solved = 0
        self.activation_post_process.observe(w)
        if self.theta is None:
            return
        solved = without_tops(self.activation_post_process.edges, self.spec)
        ratio = solved[..., :-1] / solved[..., 1:]
        ratio = torch.nan_to_num(ratio, nan=0.5).clamp(1e-4, 1 - 1e-4)
        theta = torch.cat([ratio.logit(), torch.zeros_like(solved[..., -1:])], -1)
        if self.theta.shape == theta.shape:
            self.theta.data.copy_(theta)
        else:
            self.theta.data = theta.to(self.theta.device)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of the int8 grid below; see `PWLQPerChannelObserver`."""
        return qparams_of(self.activation_post_process, self.edges)

    def extra_repr(self) -> str:
        """The format and the switches."""
        return f"{self.spec.label}, ch_axis={self.ch_axis}, learnable={self.learnable}"


class ActivationFakeQuantize(FakeQuantizeModule):
    """Uniform per-tensor fake quantization of activations, exact on int8 kernels.

    Args:
        observer: Class or factory of the range observer, such as `TopKMedianObserver`.
        bits: Width, 2 to 8; 8 if the host gives no quant_min and quant_max either.
        symmetric: Whether the grid is symmetric around zero.
        learnable: Train the step (LSQ) once the observer is disabled: ``scale`` is a parameter
            then, instead of a buffer. The zero point stays as observed.
        fake_quant: Whether quantization is on from the start; off for calibration alone.
        **observer_kwargs: ``dtype``, ``quant_min``, ``eps``, ``factory_kwargs`` ...; see
            `MinMaxObserver`.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(
        self,
        observer: Callable[..., Any] = TopKMedianObserver,
        bits: int | None = None,
        symmetric: bool = False,
        learnable: bool = False,
        fake_quant: bool = True,
        **observer_kwargs: Any,
    ) -> None:
        super().__init__()
        watch = observer(bits=bits, symmetric=symmetric, **observer_kwargs)
        self.activation_post_process = watch
        self.dtype, self.qscheme = watch.dtype, watch.qscheme
        self.quant_min, self.quant_max = watch.quant_min, watch.quant_max
        self.eps, self.is_dynamic = watch.eps, watch.is_dynamic
        self.learnable = learnable
        if learnable:
            self.scale = nn.Parameter(torch.ones(1))
        else:
            self.register_buffer("scale", torch.ones(1))
        self.register_buffer("zero_point", torch.zeros(1, dtype=torch.int32))
        self.to(device=(observer_kwargs.get("factory_kwargs") or {}).get("device"))
        self.enable_fake_quant(fake_quant)

    @property
    def bits(self) -> int:
        """Width of the grid."""
        return int(self.activation_post_process.bits)

    def forward(self, x: Tensor) -> Tensor:
        """The activation on its grid (or as it came, if fake quantization is off); same shape."""
        observing, quantizing = self.switches()
        if observing and x.numel():
            self.activation_post_process(x)
            with torch.no_grad():
                scale, zero_point = self.activation_post_process.qparams()
                self.scale.copy_(scale)
                self.zero_point.copy_(zero_point)
        if not quantizing:
            return x
        wide = x.float()
        if self.learnable:
            step = self.scale.abs().clamp(min=self.eps)
            out = lsq(wide, step, self.zero_point, self.quant_min, self.quant_max)
        else:
            out = torch.fake_quantize_per_tensor_affine(
                wide, self.scale, self.zero_point, self.quant_min, self.quant_max
            )
        return out.to(x.dtype)

    def reset_min_max_vals(self) -> None:
        """Forget everything seen; the grid stays in use until the next batch is observed."""
        self.activation_post_process.reset_min_max_vals()

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale (float32) and zero point (int32) in use, shape (1,).

        Raises:
            ValueError: nothing was observed, or something that is not finite.
        """
        self.activation_post_process.calculate_qparams()  # for its checks
        return self.scale.detach().abs().clamp(min=self.eps), self.zero_point.clone()

    def extra_repr(self) -> str:
        """Width and grid."""
        return (
            f"bits={self.bits}, learnable={self.learnable}, "
            f"scale={float(self.scale.detach()):.4g}, zero_point={int(self.zero_point)}"
        )


class PWLQActivationFakeQuantize(FakeQuantizeModule):
    """PWLQ activations, per tensor. Simulated: no int8 kernel computes with them.

    Range and breakpoints come from each calibration batch, cut to the observer's range, and are
    averaged over batches. Activations that were never negative use a one-sided grid if the spec
    is asymmetric: no code is spent on values that do not occur.

    Args:
        spec: The number format.
        observer: Class or factory of the range observer.
        fake_quant: Whether quantization is on from the start; off for calibration alone.
        **observer_kwargs: ``dtype``, ``eps`` ...; see `MinMaxObserver`.
    """

    resizable = ("edges",)
    edges: Tensor
    signed: Tensor
    num_batches: Tensor

    def __init__(
        self,
        spec: PWLQSpec | None = None,
        observer: Callable[..., Any] = TopKMedianObserver,
        fake_quant: bool = True,
        **observer_kwargs: Any,
    ) -> None:
        super().__init__()
        self.spec = PWLQSpec() if spec is None else spec
        watch = observer(**observer_kwargs)
        self.activation_post_process = watch
        self.dtype, self.qscheme = watch.dtype, watch.qscheme
        self.quant_min, self.quant_max = watch.quant_min, watch.quant_max
        self.eps, self.is_dynamic = watch.eps, watch.is_dynamic
        self.register_buffer("edges", torch.empty(0))
        self.register_buffer("signed", torch.zeros(1, dtype=torch.uint8))
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64))
        self.to(device=(observer_kwargs.get("factory_kwargs") or {}).get("device"))
        self.enable_fake_quant(fake_quant)

    @property
    def format(self) -> PWLQSpec:
        """The spec in use: one-sided as long as nothing negative was seen.

        Weights alone are kept from overflowing.
        """
        spec = dataclasses.replace(self.spec, overflow="allowed")
        if self.spec.symmetry != "asymmetric" or bool(self.signed[0]):
            return spec
        return dataclasses.replace(spec, symmetry="one-sided")

    def forward(self, x: Tensor) -> Tensor:
        """The activation on its levels (or as it came, if fake quantization is off)."""
        observing, quantizing = self.switches()
        if observing and x.numel():
            self._observe(x)
        if not quantizing:
            return x
        return self._quantize(x)

    @outside_graphs
    def _quantize(self, x: Tensor) -> Tensor:
        if self.edges.numel() == 0:
            raise ValueError(
                "PWLQActivationFakeQuantize has seen no data; run calibration batches with the "
                "observer enabled first."
            )
        return fake_quantize(x, self.format, None, edges=self.edges)

    @outside_graphs
    @torch.no_grad()
    def _observe(self, x: Tensor) -> None:
        x = x.detach().float()
        self.activation_post_process(x)
        low, high = self.activation_post_process.batch_range(x)
        sample = spread_sample(x, SAMPLE).clamp(low, high)
        if not bool(self.signed[0]) and float(low) < 0:
            self.signed[0] = 1
            if self.spec.symmetry == "asymmetric":
                self.num_batches.zero_()
        edges = solve_edges(sample, self.format, axis=None)
        if int(self.num_batches) == 0:
            self.edges.data = edges.to(self.edges.device, torch.float32)
        else:
            self.edges += (edges - self.edges) / (self.num_batches + 1)
        self.num_batches += 1

    def reset_min_max_vals(self) -> None:
        """Forget everything seen; the edges stay in use until the next batch is observed."""
        self.activation_post_process.reset_min_max_vals()
        self.num_batches.zero_()
        self.signed.zero_()

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """There are none.

        Raises:
            ValueError: always, with the way out.
        """
        raise ValueError(
            f"PWLQ activations ({self.format.label}) are simulated: no int8 kernel computes with "
            "them. Evaluate the prepared model, or use ActivationFakeQuantize to convert."
        )

    def extra_repr(self) -> str:
        """The format."""
        return f"{self.format.label}, simulated"
