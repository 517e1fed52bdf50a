"""Learned grids of activations: the step of a uniform one (LSQ), the edges of a PWLQ one.

Both modules stand in for a fake-quantizer and are baked back into it afterwards.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin.pwlq import fake_quantize
from zaq_plugin.reconstruction.learned_weights import EdgeFactors
from zaq_plugin.student.fake_quantizers import Slot, is_uniform


def drop_mask(like: Tensor, share: float, rng: torch.Generator | None) -> Tensor:
    """Each element 1 with probability ``share``, in steps of 1/256, else 0; shape and kind alike.

    Four elements share one random integer, as drawing is a fifth of a reconstruction step
    otherwise. Numbers in place of truth values, because `torch.lerp` by them takes a tenth of the
    time of `torch.where` on processors, and gives the same bits.
    """
    count = like.numel()
    words = torch.empty(-(-count // 4), dtype=torch.int32, device=like.device)
    words.random_(-(2**31), 2**31, generator=rng)
    drawn = words.view(torch.uint8)[:count]
    # Written as numbers at once: a thirteenth of the time of truth values turned into numbers.
    kept = torch.lt(drawn, round(256 * share), out=torch.empty_like(drawn, dtype=like.dtype))
    return kept.view(like.shape)


class LearnedActivation(nn.Module):
    """What learned grids of activations have in common: QDrop.

    QDrop (Wei et al., ICLR 2022): in training, each value stays unquantized with some probability,
    which makes the learned roundings serve both the quantized and the float activation.

    Args:
        drop: The probability.
        rng: Source of the drops, on the activations' device.
    """

    def __init__(self, drop: float = 0.0, rng: torch.Generator | None = None) -> None:
        super().__init__()
        self.drop, self.rng = drop, rng

    @property
    def learned(self) -> nn.Parameter:
        """What is trained."""
        raise NotImplementedError

    def quantized(self, x: Tensor) -> Tensor:
        """x on its grid."""
        raise NotImplementedError

    def rate(self, lr: float) -> float:
        """Adam's rate for a relative one: it moves a parameter by about its rate in a step."""
        raise NotImplementedError

    def bake(self, slot: Slot) -> None:
        """Write what was learned back."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """x on its grid; in training, parts of it untouched."""
        if self.training and self.drop > 0:
            return self._with_some_kept(x, drop_mask(x, self.drop, self.rng))
        return self.quantized(x)

    def _with_some_kept(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x on its grid but where it is kept."""
        out = self.quantized(x)
        return out if mask is None else torch.lerp(out, x, mask.to(out))


def learned_activation(
    slot: Slot, drop: float = 0.0, rng: torch.Generator | None = None
) -> LearnedActivation:
    """The stand-in for an activation's fake-quantizer, uniform or PWLQ."""
    if is_uniform(slot.module):
        return LearnedStep(slot, drop, rng)
    return LearnedActivationEdges(slot, drop, rng)


class _LearnedStepQuantize(torch.autograd.Function):
    """Uniform fake quantization with LSQ's gradients (Esser et al., ICLR 2020, eq. 1 to 3).

    Values where ``mask`` is 1 stay as they are, and their gradients go by the step. Operators on
    truth values are several times slower on processors than the arithmetic that is used here.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, low: float, high: float, mask: Tensor | None
    ) -> Tensor:
        scaled = x / step
        level = torch.round(scaled).clamp_(low, high)
        ctx.save_for_backward(scaled, level, mask)
        ctx.bounds = _just_outside(low, -1), _just_outside(high, 1)
        out = level * step
        return out if mask is None else torch.lerp(out, x, mask)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None, None]:
        scaled, level, mask = ctx.saved_tensors
        seen = grad if mask is None else torch.addcmul(grad, grad, mask, value=-1)
        inside = torch.ops.aten.hardtanh_backward(seen, scaled, *ctx.bounds)
        pull = torch.sub(level, scaled).mul_(inside).addcmul_(level, seen - inside)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = inside if mask is None else torch.addcmul(inside, grad, mask)
        return to_x, pull.sum().reshape(1), None, None, None


def _just_outside(bound: float, way: int) -> float:
    """The next float32 beyond a bound, as `hardtanh_backward` counts bounds as outside."""
    gap = max(abs(bound) * 2.0**-23, float(torch.finfo(torch.float32).tiny))
    return bound + way * gap


class LearnedStep(LearnedActivation):
    """A uniform activation's fake-quantizer with a learned step (LSQ).

    Args:
        slot: The activation's fake-quantizer, observers off and range known. Further arguments:
            `LearnedActivation`.
    """

    zero_point: Tensor

    def __init__(self, slot: Slot, drop: float = 0.0, rng: torch.Generator | None = None) -> None:
        super().__init__(drop, rng)
        module: Any = slot.module
        self.register_buffer("zero_point", module.zero_point.detach().clone().float())
        self.low, self.high = int(module.quant_min), int(module.quant_max)
        zero = float(self.zero_point)
        self._reach = self.low - zero, self.high - zero
        self.smallest = float(getattr(module, "eps", torch.finfo(torch.float32).eps))
        self.step = nn.Parameter(module.scale.detach().clone().float())

    @property
    def learned(self) -> nn.Parameter:
        """The step."""
        return self.step

    def quantized(self, x: Tensor) -> Tensor:
        """x on its grid."""
        return self._with_some_kept(x, None)

    def _with_some_kept(self, x: Tensor, mask: Tensor | None) -> Tensor:
        step = self.step.abs().clamp(min=self.smallest)
        out: Tensor = _LearnedStepQuantize.apply(x, step, *self._reach, mask)
        return out

    def rate(self, lr: float) -> float:
        """Relative to the step itself."""
        return lr * float(self.step.detach().abs())

    @torch.no_grad()
    def bake(self, slot: Slot) -> None:
        """Write the learned step back."""
        module: Any = slot.module
        module.scale.copy_(self.step.abs().clamp(min=self.smallest).reshape(module.scale.shape))


class LearnedActivationEdges(LearnedActivation):
    """A PWLQ activation's fake-quantizer with learned breakpoint and clip.

    Args:
        slot: The activation's fake-quantizer. Further arguments: `LearnedActivation`.
    """

    def __init__(self, slot: Slot, drop: float = 0.0, rng: torch.Generator | None = None) -> None:
        super().__init__(drop, rng)
        self.edges = EdgeFactors(slot.module.edges)
        self.spec = slot.module.format

    @property
    def learned(self) -> nn.Parameter:
        """θ of the edges."""
        return self.edges.theta

    def quantized(self, x: Tensor) -> Tensor:
        """x on its levels."""
        return fake_quantize(x, self.spec, None, edges=self.edges())

    def rate(self, lr: float) -> float:
        """Widths are learned by their logarithms, so that rates are relative."""
        return lr

    @torch.no_grad()
    def bake(self, slot: Slot) -> None:
        """Write the learned edges back."""
        slot.module.edges.copy_(self.edges())
