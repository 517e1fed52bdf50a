"""Mean and variance of every channel between layers, from BatchNorm statistics alone.

Behind a folded BatchNorm a channel is taken to be normal with the remembered mean β and deviation γ
(DFQ, Nagel et al., ICCV 2019, section 4.2.1); from there the moments follow the graph: through
clipped activations in closed form (the paper's appendix C), through other pointwise activations by
quadrature, through sums as if the terms were independent.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from zaq_plugin.layers import LAYERS
from zaq_plugin.ptq.channel_axis import (
    Axis,
    behind,
    behind_layer,
    features,
    shape_of,
    zero_padding,
)
from zaq_plugin.ptq.channels import BoundedReLU, linear_response, wide_weight
from zaq_plugin.ptq.connections import kind_of, layer_graph
from zaq_plugin.ptq.fold import Normal

_POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": nn.functional.silu,
    "gelu": nn.functional.gelu,
    "hardswish": nn.functional.hardswish,
    "hardsigmoid": nn.functional.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "elu": nn.functional.elu,
    "leakyrelu": lambda x: nn.functional.leaky_relu(x, 0.01),
}
_NODES = 64


@dataclass(frozen=True)
class Moments:
    """What is known of a tensor's channels; each (channels,) float64.

    Attributes:
        mean, var: First moment and variance, over samples and positions.
        low, high: Limits that values practically never cross.
        where: The axis of the channels, while they are followed through the graph.
    """

    mean: Tensor
    var: Tensor
    low: Tensor
    high: Tensor
    where: Axis | None = None

    def at(self, index: Tensor) -> Moments:
        """Of features that hold these channels."""
        index = index.to(self.mean.device)
        return Moments(self.mean[index], self.var[index], self.low[index], self.high[index])


def clipped_normal(normal: Normal, high: Tensor | float = math.inf) -> tuple[Tensor, Tensor]:
    """Mean and variance of ``min(max(x, 0), high)`` for normal x, per channel.

    Args:
        normal: x before the activation.
        high: The bound of a ReLU6, a number or (channels,); infinite for ReLU.
    """
    mu, sigma = normal.mean, normal.deviation.clamp(min=1e-30)
    top = torch.as_tensor(high, dtype=mu.dtype, device=mu.device)
    a, b = -mu / sigma, (top - mu) / sigma
    phi_a, phi_b = _density(a), _density(b)
    inside, above = _cumulative(b) - _cumulative(a), 1 - _cumulative(b)
    finite = torch.where(top.isfinite(), top, torch.zeros_like(top))
    b_phi = torch.where(b.isfinite(), b, torch.zeros_like(b)) * phi_b
    mean = sigma * (phi_a - phi_b) + mu * inside + finite * above
    second = (mu.square() + sigma.square()) * inside + sigma.square() * (a * phi_a - b_phi)
    second = second + 2 * mu * sigma * (phi_a - phi_b) + finite.square() * above
    return mean, (second - mean.square()).clamp(min=0)


def _density(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)


def _cumulative(z: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-z / math.sqrt(2))


def input_moments(
    model: nn.Module,
    remembered: Mapping[str, Normal],
    *,
    example_inputs: Sequence[Any] | None = None,
    image: Normal | None = None,
    image_range: tuple[Tensor, Tensor] | None = None,
    sigmas: float = 6.0,
) -> dict[str, Moments | None]:
    """What every layer's input is like, feature by feature; None where the graph does not say.

    Args:
        model: BatchNorm folded, not yet quantized.
        remembered: Statistics of the layers' outputs; a layer without follows from its input.
        example_inputs: Needed where torch.fx cannot trace the model.
        image: The network's own input, per channel.
        image_range: Its limits (black and white), each (channels,).
        sigmas: Limits lie so many deviations from the mean (DFQ: 6).
    """
    graph = layer_graph(model, example_inputs)
    walk = _Walk(graph, remembered, sigmas)
    if image is not None:
        low, high = image_range or walk.limits(image.mean, image.deviation.square())
        where = Axis(len(image.mean), 1, 4, index=torch.arange(len(image.mean)))
        walk.image = Moments(
            image.mean, image.deviation.square(), low.double(), high.double(), where
        )
    return walk.run()


class _Walk:
    """One pass over the graph in order of execution."""

    def __init__(
        self, graph: fx.GraphModule, remembered: Mapping[str, Normal], sigmas: float
    ) -> None:
        self.graph, self.remembered, self.sigmas = graph, remembered, sigmas
        self.image: Moments | None = None
        self.moments: dict[fx.Node, Moments | None] = {}
        self.inputs: dict[str, Moments | None] = {}

    def run(self) -> dict[str, Moments | None]:
        for node in self.graph.graph.nodes:
            self.moments[node] = self._at(node)
        return self.inputs

    def limits(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        reach = self.sigmas * var.sqrt()
        return mean - reach, mean + reach

    def _from(self, mean: Tensor, var: Tensor, where: Axis | None) -> Moments:
        low, high = self.limits(mean, var)
        return Moments(mean, var, low, high, where)

    def _of(self, value: object) -> Moments | None:
        return self.moments.get(value) if isinstance(value, fx.Node) else None

    def _at(self, node: fx.Node) -> Moments | None:
        if node.op == "placeholder":
            first = next(n for n in self.graph.graph.nodes if n.op == "placeholder")
            return self.image if node is first else None
        kind = kind_of(self.graph, node)
        x = self._of(node.args[0]) if node.args else None
        if kind == "layer":
            return self._layer(node, x)
        if kind == "add":
            return self._sum(x, self._of(node.args[1]) if len(node.args) > 1 else None)
        if kind == "cat":
            return self._joined(node)
        if x is None or x.where is None:
            return None
        if kind in ("relu", "relu6", "bounded"):
            return self._clipped(node, kind, x)
        if kind == "slice":
            return x if _keeps_channels(node, x.where) else None
        if kind == "pad" and (padded := _padded(node, x, x.where)):
            return padded
        if kind in ("identity", "pool", "flatten", "mean", "pad"):
            where = behind(node, kind, x.where)
            return None if isinstance(where, str) else replace(x, where=where)
        if kind in _POINTWISE:
            return self._pointwise(node, kind, x)
        return None

    def _layer(self, node: fx.Node, x: Moments | None) -> Moments | None:
        name = str(node.target)
        layer = self.graph.get_submodule(name)
        where = behind_layer(layer, shape_of(node))
        if x is not None:
            index = "" if x.where is None else features(x.where, layer)
            x = None if isinstance(index, str) else x.at(index)
        self.inputs[name] = x if name not in self.inputs else None  # called twice: not one input
        if name in self.remembered:
            normal = self.remembered[name]
            return self._from(normal.mean, normal.deviation.square(), where)
        if x is None or not isinstance(layer, LAYERS):
            return None
        weight = wide_weight(layer)
        mean, var = linear_response(layer, weight, x.mean), None
        if isinstance(layer.bias, Tensor):
            mean = mean + layer.bias.detach().to(mean)
        var = linear_response(layer, weight.square(), x.var)
        return self._from(mean, var, where)

    def _sum(self, x: Moments | None, y: Moments | None) -> Moments | None:
        if x is None or y is None or x.where is None or not _same_axis(x.where, y.where):
            return None
        return self._from(x.mean + y.mean, x.var + y.var, x.where)

    def _joined(self, node: fx.Node) -> Moments | None:
        parts: Any = node.args[0]
        axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        moments = [m for m in map(self._of, parts) if m is not None]
        places = [m.where for m in moments if m.where is not None and m.where.plain]
        if len(places) != len(parts) or not all(_on_axis(p, axis, places[0]) for p in places):
            return None
        mean, var, low, high = (
            torch.cat([getattr(m, name) for m in moments])
            for name in ("mean", "var", "low", "high")
        )
        return Moments(mean, var, low, high, _with_channels(places[0], len(mean)))

    def _clipped(self, node: fx.Node, kind: str, x: Moments) -> Moments:
        top: Tensor = torch.full_like(x.mean, math.inf)
        if kind == "relu6":
            top = torch.full_like(x.mean, 6.0)
        elif kind == "bounded":
            module = self.graph.get_submodule(str(node.target))
            assert isinstance(module, BoundedReLU)
            top = module.bound.to(x.mean)
        mean, var = clipped_normal(Normal(x.mean, x.var.sqrt()), top)
        low, high = x.low.clamp(min=0), torch.minimum(x.high.clamp(min=0), top)
        return Moments(mean, var, low, high, x.where)

    def _pointwise(self, node: fx.Node, kind: str, x: Moments) -> Moments:
        function = _POINTWISE[kind]
        if node.op == "call_module":
            function = copy.deepcopy(self.graph.get_submodule(str(node.target))).double()
        points, weights = np.polynomial.hermite_e.hermegauss(_NODES)
        z = torch.from_numpy(points).to(x.mean)
        share = torch.from_numpy(weights / weights.sum()).to(x.mean)
        with torch.no_grad():
            values = function(x.mean.unsqueeze(1) + x.var.sqrt().unsqueeze(1) * z)
            line = torch.linspace(0, 1, 257, device=x.mean.device, dtype=x.mean.dtype)
            whole = function(torch.lerp(x.low.unsqueeze(1), x.high.unsqueeze(1), line))
        mean = (values * share).sum(1)
        var = ((values - mean.unsqueeze(1)).square() * share).sum(1)
        return Moments(mean, var, whole.amin(1), whole.amax(1), x.where)


def _same_axis(x: Axis, y: Axis | None) -> bool:
    """Whether two tensors that are added hold the same channels at the same places."""
    if y is None or x.channels != y.channels or (x.axis, x.rank) != (y.axis, y.rank):
        return False
    return x.plain and y.plain


def _on_axis(where: Axis, axis: object, first: Axis) -> bool:
    """Whether tensors are joined along the axis of their channels."""
    same = (where.axis, where.rank) == (first.axis, first.rank)
    return same and axis in (where.axis, where.axis - (where.rank or 0))


def _with_channels(where: Axis, channels: int) -> Axis:
    index = None if where.index is None else torch.arange(channels)
    return replace(where, channels=channels, index=index)


def _keeps_channels(node: fx.Node, where: Axis) -> bool:
    """Whether a slice takes all channels, and leaves their axis where it is."""
    if where.rank is None:
        return False
    if isinstance(node.target, torch._ops.OpOverload):  # aten.slice(x, dim, start, end, step)
        dim = node.args[1] if len(node.args) > 1 else 0
        return isinstance(dim, int) and dim % where.rank != where.axis
    index: Any = node.args[1] if len(node.args) > 1 else None
    every = index if isinstance(index, tuple) else (index,)
    if not all(isinstance(i, slice) for i in every):
        return False
    return len(every) <= where.axis or every[where.axis] == slice(None)


def _padded(node: fx.Node, x: Moments, where: Axis) -> Moments | None:
    """Channels of zeros that a padding adds; None if it adds none."""
    widths = zero_padding(node)
    if widths is None or where.rank is None or not where.plain:
        return None
    from_end = where.rank - where.axis
    before, after = [*widths[2 * (from_end - 1) : 2 * from_end], 0, 0][:2]
    if not (before or after):
        return None

    def grown(values: Tensor) -> Tensor:
        return torch.cat([values.new_zeros(before), values, values.new_zeros(after)])

    mean, var, low, high = (grown(v) for v in (x.mean, x.var, x.low, x.high))
    return Moments(mean, var, low, high, _with_channels(where, len(mean)))
