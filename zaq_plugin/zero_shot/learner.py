"""What trains in a student: weights or their roundings, steps, clips and breakpoints, biases."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin.zero_shot.config import ZeroShotConfig
from zaq_plugin.zero_shot.quantizers import Slot, activation_slots, weight_slots
from zaq_plugin.zero_shot.rounding import LearnedEdges, LearnedRounding, LearnedStep

LOGIT_LIMIT = 4.0
"""Where learned roundings start from at most: beyond it the sigmoid has no gradient left."""


class Learner:
    """Puts learnable stand-ins in the place of fake-quantizers and optimises them.

    `attach` and `detach` switch between the stand-ins (training) and the student's own
    fake-quantizers with everything written back (judging, saving, handing over).

    Args:
        student: Prepared and calibrated, observers off. It is attached on return.
        example: A small batch of images.
        config: The settings.
    """

    def __init__(self, student: nn.Module, example: Tensor, config: ZeroShotConfig) -> None:
        self.student, self.config = student, config
        self.weights = weight_slots(student, example)
        self.activations: list[Slot] = activation_slots(student) if config.step_lr > 0 else []
        device = example.device
        self.roundings: list[LearnedRounding] = []
        self.edges: list[LearnedEdges] = []
        if config.train == "rounding":
            self.roundings = [
                LearnedRounding(s, learn_scale=config.edge_lr > 0).to(device) for s in self.weights
            ]
            for rounding in self.roundings:
                rounding.logits.data.clamp_(-LOGIT_LIMIT, LOGIT_LIMIT)
        elif config.edge_lr > 0:
            self.edges = [LearnedEdges(s).to(device) for s in self.weights]
        self.steps = [LearnedStep(s).to(device) for s in self.activations]
        stand_ins: list[nn.Module] = [*(self.roundings or self.edges), *self.steps]
        places: list[Slot] = [
            *(self.weights if self.roundings or self.edges else []),
            *self.activations,
        ]
        self._pairs = list(zip(places, stand_ins, strict=True))
        groups, self._annealed = self._groups()
        self.trained = [p for group in groups for p in group["params"]]
        if config.optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, momentum=config.momentum)
        else:
            self.optimizer = torch.optim.Adam(groups)
        self._rates = [group["lr"] for group in groups]
        self.average = (
            [p.detach().clone() for p in self.trained] if config.ema_decay > 0 else []
        )
        self.done = 0
        self.attached = False
        self.attach()

    def _groups(self) -> tuple[list[dict[str, Any]], list[bool]]:
        config = self.config
        quantized = [slot.parameter for slot in self.weights]
        known = {id(p) for p in quantized}
        own = [p for p in self.student.parameters() if p.requires_grad and id(p) not in known]
        unique = list({id(p): p for p in quantized}.values())
        rate = config.student_lr
        groups: list[dict[str, Any]] = []
        if self.roundings:
            logits = [r.logits for r in self.roundings]
            groups.append({"params": logits, "lr": config.rounding_lr})
            groups.append({"params": [r.log_scale for r in self.roundings], "lr": config.edge_lr})
        else:
            groups.append({"params": unique, "lr": rate, "weight_decay": config.weight_decay})
            learned = [p for e in self.edges for p in e.parameters() if p.numel()]
            groups.append({"params": learned, "lr": config.edge_lr})
        groups.append({"params": own, "lr": rate * config.bias_lr})
        groups += [
            {"params": [s.step], "lr": config.step_lr * float(s.step.detach().abs())}
            for s in self.steps
        ]
        annealed = [not (self.roundings and i == 0) for i in range(len(groups))]
        kept = [i for i, group in enumerate(groups) if group["params"]]
        return [groups[i] for i in kept], [annealed[i] for i in kept]

    # ---- switching -----------------------------------------------------------------------------

    def attach(self) -> None:
        """Stand-ins in, for training."""
        if not self.attached:
            for slot, stand_in in self._pairs:
                slot.swap(stand_in)
            self.attached = True

    def detach(self) -> None:
        """Write everything back and put the student's own fake-quantizers in."""
        if not self.attached:
            return
        for slot, _ in self._pairs:
            slot.restore()
        for place, rounding in zip(self.weights, self.roundings, strict=False):
            # Baking scales the edges, so it starts from those that the rounding was built on.
            place.module.activation_post_process.edges.copy_(rounding.edges)  # type: ignore[union-attr, operator]
            rounding.bake(place, exact=False)
            rounding.hard = False
        for place, learned in zip(self.weights, self.edges, strict=False):
            learned.bake(place)
        for slot, step in zip(self.activations, self.steps, strict=True):
            step.bake(slot)
        self.attached = False

    @contextmanager
    def judged(self) -> Iterator[None]:
        """Detached inside, attached again after."""
        self.detach()
        try:
            yield
        finally:
            self.attach()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The moving average in the place of the learned values."""
        kept = [p.detach().clone() for p in self.trained]
        with torch.no_grad():
            for parameter, mean in zip(self.trained, self.average, strict=True):
                parameter.copy_(mean)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.trained, kept, strict=True):
                    parameter.copy_(value)

    # ---- steps ---------------------------------------------------------------------------------

    def regulariser(self) -> Tensor | None:
        """AdaRound's pull of the roundings to one side, once a fifth of the run is over."""
        share = self.done / max(1, self.config.steps)
        if not self.roundings or share < 0.2:
            return None
        sharpness = 2 + 18 * (1 - (share - 0.2) / 0.8)
        parts = [r.regulariser(sharpness) for r in self.roundings]
        return self.config.rounding_regulariser * torch.stack(parts).sum()

    def update(self, loss: Tensor) -> float:
        """One optimizer step; returns the gradient's norm."""
        config = self.config
        self._set_rates()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        limit = config.grad_clip if config.grad_clip > 0 else math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.trained, limit))
        before = [s.parameter.detach().clone() for s in self.weights] if config.crossing > 0 else []
        self.optimizer.step()
        for slot, old in zip(self.weights, before, strict=False):
            _scale_update(slot.parameter, old, slot.levels(), slot.rows, config.crossing)
        self.done += 1
        with torch.no_grad():
            for mean, parameter in zip(self.average, self.trained, strict=False):
                mean.lerp_(parameter, 1 - min(config.ema_decay, (1 + self.done) / (10 + self.done)))
        return norm

    def _set_rates(self) -> None:
        share = self.done / max(1, self.config.steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
        factor = cosine if self.config.schedule == "cosine" else 1.0
        groups = self.optimizer.param_groups
        for group, rate, annealed in zip(groups, self._rates, self._annealed, strict=True):
            group["lr"] = rate * (factor if annealed else 1.0)

    # ---- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Learned values, their moving average, the optimizer."""
        return {
            "values": [p.detach().clone() for p in self.trained],
            "average": [m.clone() for m in self.average],
            "optimizer": self.optimizer.state_dict(),
            "done": self.done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo `state_dict`."""
        with torch.no_grad():
            for parameter, value in zip(self.trained, state["values"], strict=True):
                parameter.copy_(value)
            for mean, value in zip(self.average, state["average"], strict=True):
                mean.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = int(state["done"])


@torch.no_grad()
def _scale_update(
    parameter: Tensor, before: Tensor, levels: Tensor, rows: Any, share: float
) -> None:
    """AIT's idea: updates large enough that weights cross rounding thresholds.

    The mean update of a weight tensor becomes ``share`` of its mean level distance, times 1e-3.
    """
    update = parameter - before
    size = rows(update).abs().mean()
    gap = (levels[:, 1:] - levels[:, :-1]).clamp(min=0).mean()
    if float(size) > 0:
        parameter.copy_(before + update * (share * 1e-3 * gap / size))
