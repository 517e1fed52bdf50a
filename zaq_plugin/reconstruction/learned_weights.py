"""Learned grids and roundings of weights.

Every piece of a channel's grid has a factor; AdaRound decides between neighbouring levels of any
grid. The modules stand in for a weight's fake-quantizer and are baked back into it afterwards.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zaq_plugin.pwlq import fake_quantize
from zaq_plugin.pwlq.cells import fitting_edges, float_for_levels
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


# AdaRound (Nagel et al., ICML 2020), equation 23: the sigmoid is stretched past 0 and 1, and cut.
STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1


class LearnedRounding(nn.Module):
    """AdaRound between neighbouring levels of any codebook, uniform or piecewise linear.

    A weight between levels l_k and l_{k+1} becomes l_k + h(V) (l_{k+1} - l_k) with the rectified
    sigmoid h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1). V starts where the soft weight is the weight
    itself (cut to the range). Once decided, h is rounded.

    Args:
        layer: Whose weight is rounded.
        learn_levels: Also learn the levels, see `LearnedLevels`.
    """

    index: Tensor
    decided: Tensor
    upper_first: Tensor
    gap: Tensor

    def __init__(self, layer: QuantLayer, learn_levels: bool = False) -> None:
        super().__init__()
        self._rows, self._unrows = layer.rows, layer.unrows
        self.levels = LearnedLevels(layer, learn_levels)
        rows, levels = layer.rows(layer.weight).float(), self.levels.first
        index = torch.searchsorted(levels.contiguous(), rows.contiguous(), right=True) - 1
        self.register_buffer("index", index.clamp(0, levels.shape[1] - 2))
        low, high = self.neighbours()
        low, high = low.detach(), high.detach()
        share = ((rows - low) / (high - low).clamp(min=1e-20)).clamp(0, 1)
        stretched = (share - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW)
        self.logits = nn.Parameter(torch.logit(stretched))
        self.register_buffer("upper_first", share >= 0.5)
        self.register_buffer("decided", torch.zeros_like(share, dtype=torch.bool))
        self._share: Tensor | None = None  # of the forward pass, for the regulariser of its step
        gap = high - low
        self.register_buffer("gap", gap / gap.mean(1, keepdim=True).clamp(min=1e-20))

    def neighbours(self) -> tuple[Tensor, Tensor]:
        """The levels below and above each weight, (channels, elements) each."""
        levels = self.levels()
        return levels.gather(1, self.index), levels.gather(1, self.index + 1)

    def share(self) -> Tensor:
        """h(V), (channels, elements): how far each weight is on its way up."""
        stretched = torch.sigmoid(self.logits) * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW
        return torch.where(self.decided, (self.logits >= 0).to(stretched), stretched.clamp(0, 1))

    @torch.no_grad()
    def decide(self, part: float) -> None:
        """Harden the surest roundings for good, so that ``part`` of all are; the others go on.

        Of equally sure ones those between levels far apart, by their channel's measure, are first,
        so that the finer ones, which are still open, make up for them.
        """
        count = round(part * self.logits.numel())
        if count <= int(self.decided.sum()):
            return
        sureness = (self.logits.abs() * self.gap).masked_fill(self.decided, torch.inf).flatten()
        self.decided.view(-1)[sureness.topk(count).indices] = True

    def regulariser(self, sharpness: float) -> Tensor:
        """Σ (1 - |2 h - 1|^β): pulls every rounding to one side (AdaRound, equation 24)."""
        share, self._share = self._share, None
        if share is None:
            share = self.share()
        return (1 - (2 * share - 1).abs().pow(sharpness)).sum()

    def forward(self, w: Tensor) -> Tensor:
        """The learned weight; w itself is not looked at."""
        share = self.share()
        self._share = share if share.requires_grad else None
        out: Tensor = self._unrows(torch.lerp(*self.neighbours(), share))
        return out.to(w.dtype)

    @torch.no_grad()
    def rerounded(self) -> int:
        """How many weights no longer have the nearest one of their two levels."""
        return int((self.upper_first != (self.logits >= 0)).sum())

    @torch.no_grad()
    def bake(self, layer: QuantLayer, exact: bool) -> None:
        """Write roundings and levels back: the fake-quantizer reproduces them by itself.

        Args:
            layer: The same, observers off.
            exact: Write the levels themselves; else the value closest to the old weight that the
                fake-quantizer rounds to the chosen level, which keeps what training can build on.
        """
        self.levels.bake(layer)
        self.decide(1.0)
        target = self(layer.weight)

        def change(values: Tensor) -> Tensor:
            return layer.rows(values - target).square().sum(1)

        spec, axis = layer.quantizer.spec, layer.axis
        layer.set_edges(fitting_edges(target, spec, axis, layer.edges, change))
        if exact:
            layer.write(layer.quantized(target))
            return
        layer.write(float_for_levels(layer.weight, target, spec, axis, layer.edges))
