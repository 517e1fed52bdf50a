"""What is learned while a block is reconstructed: roundings of weights, steps of activations.

Both modules stand in for a fake-quantizer and are baked back into it afterwards.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin.pwlq import fake_quantize
from zaq_plugin.zero_shot.quantizers import Slot, WeightSlot

# AdaRound (Nagel et al., ICML 2020), equation 23: the sigmoid is stretched past 0 and 1, and cut.
STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1


class LearnedRounding(nn.Module):
    """AdaRound between neighbouring levels of any codebook, uniform or piecewise linear.

    A weight between levels l_k and l_{k+1} becomes l_k + h(V) (l_{k+1} - l_k) with the rectified
    sigmoid h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1). V starts where the soft weight is the weight
    itself (cut to the range). Once hardened, h is rounded.

    Args:
        slot: The weight's fake-quantizer.
        learn_scale: Also learn a factor on each channel's levels.
    """

    low: Tensor
    high: Tensor
    decided: Tensor

    def __init__(self, slot: WeightSlot, learn_scale: bool = False) -> None:
        super().__init__()
        self._rows, self._unrows = slot.rows, slot.unrows
        rows, levels = slot.rows(slot.seen).float(), slot.levels().float()
        index = torch.searchsorted(levels.contiguous(), rows.contiguous(), right=True) - 1
        index = index.clamp(0, levels.shape[1] - 2)
        low, high = levels.gather(1, index), levels.gather(1, index + 1)
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        share = ((rows - low) / (high - low).clamp(min=1e-20)).clamp(0, 1)
        stretched = (share - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW)
        self.logits = nn.Parameter(torch.logit(stretched))
        self.hard = False
        self.register_buffer("decided", torch.zeros_like(share, dtype=torch.bool))
        # Scale factor is exp(log_scale): starts at 1.
        self.log_scale = nn.Parameter(torch.zeros(rows.shape[0], 1), requires_grad=learn_scale)

    def share(self) -> Tensor:
        """h(V), (channels, elements): how far each weight is on its way up."""
        stretched = torch.sigmoid(self.logits) * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW
        return torch.where(self.decided, (self.logits >= 0).to(stretched), stretched.clamp(0, 1))

    @torch.no_grad()
    def decide(self, part: float) -> None:
        """Harden the surest roundings for good, so that ``part`` of all are; the others go on."""
        count = round(part * self.logits.numel())
        if count <= int(self.decided.sum()):
            return
        sureness = self.logits.abs().masked_fill(self.decided, torch.inf).flatten()
        self.decided.view(-1)[sureness.topk(count).indices] = True

    def regulariser(self, sharpness: float) -> Tensor:
        """Σ (1 - |2 h - 1|^β): pulls every rounding to one side (AdaRound, equation 24)."""
        return (1 - (2 * self.share() - 1).abs().pow(sharpness)).sum()

    def forward(self, w: Tensor) -> Tensor:
        """The learned weight; w itself is not looked at."""
        if self.hard:
            rows = torch.where(self.logits >= 0, self.high, self.low)
        else:
            rows = torch.lerp(self.low, self.high, self.share())
        rows = rows * self.log_scale.exp()
        out: Tensor = self._unrows(rows)
        return out.to(w.dtype)

    @torch.no_grad()
    def bake(self, slot: WeightSlot, exact: bool) -> None:
        """Write roundings and scales back: the fake-quantizer reproduces them by itself.

        Args:
            slot: The weight's fake-quantizer, observers off.
            exact: Write the levels themselves; else the value closest to the old weight that the
                fake-quantizer rounds to the chosen level, which keeps what training can build on.
        """
        factor = self.log_scale.exp()
        scale_edges(slot.module, factor.squeeze(1))
        self.hard = True
        wanted = self(slot.seen)
        values = wanted if exact else _nearest_in_cell(slot, wanted, slot.seen)
        # Rounding of the scale may move a level by one unit in the last place.
        levels = slot.quantized(wanted)
        missed = slot.quantized(values) != levels
        slot.write(torch.where(missed | exact, levels, values))


def scale_edges(module: Any, factor: Tensor) -> None:
    """Multiply breakpoints and clip of every channel by a factor, (channels,)."""
    edges = module.activation_post_process.edges
    edges.mul_(factor.to(edges).reshape(1, -1, 1))


def _nearest_in_cell(slot: WeightSlot, wanted: Tensor, seen: Tensor) -> Tensor:
    """The value closest to ``seen`` that is rounded to the level ``wanted``: inside its cell."""
    rows, target, levels = slot.rows(seen).float(), slot.rows(wanted).float(), slot.levels().float()
    index = torch.searchsorted(levels.contiguous(), target.contiguous())
    index = index.clamp(0, levels.shape[1] - 1)
    below = levels.gather(1, (index - 1).clamp(min=0))
    above = levels.gather(1, (index + 1).clamp(max=levels.shape[1] - 1))
    middle = levels.gather(1, index)
    # 2 % off the thresholds, so that float rounding does not decide.
    low = middle - 0.49 * (middle - below)
    high = middle + 0.49 * (above - middle)
    return slot.unrows(torch.minimum(torch.maximum(rows, low), high)).to(seen.dtype)


class _LearnedStepQuantize(torch.autograd.Function):
    """Uniform fake quantization with LSQ's gradients (Esser et al., ICLR 2020, eq. 1 to 3)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, offset: Tensor, low: int, high: int) -> Tensor:
        scaled = x / step
        level = torch.round(scaled).add_(offset).clamp_(low, high).sub_(offset)
        ctx.save_for_backward(scaled, level)
        ctx.bounds = (low - offset, high - offset)
        return level * step

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        scaled, level = ctx.saved_tensors
        low, high = ctx.bounds
        inside = (scaled >= low) & (scaled <= high)
        pull = torch.where(inside, level - scaled, level)
        return grad * inside, (grad * pull).sum().reshape(1), None, None, None


class LearnedStep(nn.Module):
    """An activation's fake-quantizer with a learned step (LSQ) and, in training, QDrop.

    QDrop (Wei et al., ICLR 2022): each value stays unquantized with some probability, which makes
    the learned roundings serve both the quantized and the float activation.

    Args:
        slot: The activation's fake-quantizer, observers off and range known.
        drop: QDrop's probability.
        rng: Source of the drops, on the activations' device.
    """

    zero_point: Tensor

    def __init__(self, slot: Slot, drop: float = 0.0, rng: torch.Generator | None = None) -> None:
        super().__init__()
        module: Any = slot.module
        self.register_buffer("zero_point", module.zero_point.detach().clone().float())
        self.low, self.high = int(module.quant_min), int(module.quant_max)
        self.smallest = float(getattr(module, "eps", torch.finfo(torch.float32).eps))
        self.step = nn.Parameter(module.scale.detach().clone().float())
        self.drop = drop
        self.rng = rng

    def forward(self, x: Tensor) -> Tensor:
        """x on its grid; in training, parts of it untouched."""
        step = self.step.abs().clamp(min=self.smallest)
        out: Tensor = _LearnedStepQuantize.apply(x, step, self.zero_point, self.low, self.high)
        if self.training and self.drop > 0:
            mask = torch.empty_like(x).bernoulli_(self.drop, generator=self.rng)
            out = torch.lerp(out, x, mask)
        return out

    @torch.no_grad()
    def bake(self, slot: Slot) -> None:
        """Write the learned step back."""
        module: Any = slot.module
        module.scale.copy_(self.step.abs().clamp(min=self.smallest).reshape(module.scale.shape))


class LearnedEdges(nn.Module):
    """A weight's fake-quantizer whose clip and breakpoints are trained, while the weight trains.

    The clip is m exp(θ_m) and each breakpoint p_l = p_{l+1} sigmoid(θ_l), so that they stay ordered
    and positive; θ starts where the edges are.

    Args:
        slot: The weight's fake-quantizer.
        breakpoints: Train breakpoints too; else they follow the clip.
    """

    start: Tensor
    ratio: Tensor

    def __init__(self, slot: WeightSlot, breakpoints: bool = True) -> None:
        super().__init__()
        module: Any = slot.module
        edges = module.edges.detach().clone().float()
        self.register_buffer("start", edges)
        self.spec, self.axis = module.spec, slot.axis
        self.clip = nn.Parameter(torch.zeros_like(edges[..., -1:]))
        ratio = torch.nan_to_num(edges[..., :-1] / edges[..., 1:], nan=0.5)
        self.register_buffer("ratio", ratio)
        shift = nn.Parameter(torch.zeros_like(ratio), requires_grad=breakpoints)
        self.breakpoint_shift = shift

    def edges(self) -> Tensor:
        """(sides, channels, n + 1)."""
        upper = self.start[..., -1:] * self.clip.exp()
        columns = [upper]
        inside = self.ratio.clamp(1e-4, 1 - 1e-4).logit() + self.breakpoint_shift
        for piece in range(self.ratio.shape[-1] - 1, -1, -1):
            upper = upper * inside[..., piece : piece + 1].sigmoid()
            columns.append(upper)
        return torch.cat(columns[::-1], -1)

    def forward(self, w: Tensor) -> Tensor:
        """The weight on its levels, differentiable in the weight and in the edges."""
        return fake_quantize(w, self.spec, self.axis, edges=self.edges())

    @torch.no_grad()
    def bake(self, slot: WeightSlot) -> None:
        """Write the edges back into the fake-quantizer."""
        module: Any = slot.module
        module.activation_post_process.edges.copy_(self.edges())
