"""Learned grids of weights: every piece of a channel's grid has a factor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zaq_plugin.pwlq import fake_quantize
from zaq_plugin.pwlq.levels import build_grid, tops_of, with_tops, without_tops
from zaq_plugin.student import QuantLayer


class EdgeFactors(nn.Module):
    """Breakpoints and clips that are learned: every piece's width p_{l+1} - p_l becomes
    (p_{l+1} - p_l) exp(θ), so that they stay in order and positive.

    Args:
        start: (sides, channels, n + 1) where they start, at θ = 0.
        shared: One θ a channel, for all pieces and sides.
        tops: (channels,) largest levels of the int8 grid, which stay; see `with_tops`.
    """

    start: Tensor
    tops: Tensor | None

    def __init__(self, start: Tensor, shared: bool = False, tops: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("tops", tops)
        start = start.detach().clone().float()
        self.register_buffer("start", start)
        self.theta = nn.Parameter(torch.zeros_like(start[:1, :, :1] if shared else start))

    def forward(self) -> Tensor:
        """(sides, channels, n + 1) breakpoints and clips at the present θ; n + 2 with tops."""
        width = torch.diff(self.start, dim=-1, prepend=torch.zeros_like(self.start[..., :1]))
        edges = self.start + (width * self.theta.expm1()).cumsum(-1)
        return edges if self.tops is None else with_tops(edges, self.tops)


def edge_factors(layer: QuantLayer, shared: bool = False) -> EdgeFactors:
    """The factors of a layer's edges."""
    spec, edges = layer.quantizer.spec, layer.edges
    tops = tops_of(edges, spec) if spec.guarded else None
    return EdgeFactors(without_tops(edges, spec), shared, tops)


class LearnedLevels(nn.Module):
    """Levels of every channel, differentiable in the factors of their edges.

    Every piece of a PWLQ grid has a factor, on each side of an asymmetric one; uniform and
    overlapping grids have one a channel. Levels are those that the fake-quantizer has at the same
    edges, snapped to the int8 grid; gradients are those of the ideal ones.

    Args:
        layer: Whose weight is on these levels.
        learn: Whether factors are trained; they start where the levels are the fake-quantizer's.
    """

    first: Tensor

    def __init__(self, layer: QuantLayer, learn: bool = True) -> None:
        super().__init__()
        self.spec, self.learn = layer.quantizer.spec, learn
        self.by_piece = self.spec.by_piece
        self.register_buffer("first", layer.levels().float())
        self.edges = edge_factors(layer, shared=not self.by_piece)

    def forward(self) -> Tensor:
        """(channels, L) ascending levels in weight units."""
        if not self.learn:
            return self.first
        if not self.by_piece:
            return self.first * self.edges.theta[0].exp()
        edges: Tensor = self.edges()
        ideal = self.spec.signed_levels(edges)
        with torch.no_grad():
            grid = build_grid(edges, self.spec)
            snap = grid.values * grid.scale.unsqueeze(1) - ideal
        return ideal + snap

    @torch.no_grad()
    def bake(self, layer: QuantLayer) -> None:
        """Write the edges back into the fake-quantizer."""
        layer.set_edges(self.edges())


class LearnedEdges(nn.Module):
    """A weight's fake-quantizer whose clip and breakpoints are trained, while the weight trains.

    Args:
        layer: Whose weight is on these levels.
    """

    def __init__(self, layer: QuantLayer) -> None:
        super().__init__()
        self.edges = edge_factors(layer)
        self.spec, self.axis = layer.quantizer.spec, layer.axis

    def forward(self, w: Tensor) -> Tensor:
        """The weight on its levels, differentiable in the weight and in the edges."""
        return fake_quantize(w, self.spec, self.axis, edges=self.edges())

    @torch.no_grad()
    def bake(self, layer: QuantLayer) -> None:
        """Write the edges back into the fake-quantizer."""
        layer.set_edges(self.edges())
