"""What trains in a student: weights straight through, steps, clips and breakpoints, biases."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from zaq_plugin.reconstruction.learned_activations import learned_activation
from zaq_plugin.reconstruction.learned_weights import LearnedEdges
from zaq_plugin.student import QuantLayer, reached_layers
from zaq_plugin.student.fake_quantizers import Slot, activation_slots
from zaq_plugin.zero_shot.config import ZeroShotConfig


class Learner:
    """Puts learnable stand-ins in the place of fake-quantizers and optimises them.

    `attach` and `detach` switch between the stand-ins (training) and the student's own
    fake-quantizers with everything written back (judging, saving, handing over).

    Args:
        student: Prepared and calibrated, observers off. It is attached on return.
        example: A small batch of images.
        config: The settings.

    Raises:
        ValueError: If no parameter requires a gradient.
    """

    def __init__(self, student: nn.Module, example: Tensor, config: ZeroShotConfig) -> None:
        self.student, self.config = student, config
        training = config.training
        self.weights = reached_layers(student, example)
        self.activations: list[Slot] = activation_slots(student) if training.step_lr > 0 else []
        device = example.device
        self.edges: list[LearnedEdges] = []
        if training.edge_lr > 0:
            self.edges = [LearnedEdges(s).to(device) for s in self.weights]
        self.steps = [learned_activation(s).to(device) for s in self.activations]
        self._pairs: list[tuple[Slot, nn.Module]] = [
            *zip((layer.slot for layer in self.weights), self.edges, strict=False),
            *zip(self.activations, self.steps, strict=True),
        ]
        groups = self._groups()
        self.trained = [p for group in groups for p in group["params"]]
        if not any(p.requires_grad for p in self.trained):
            raise ValueError(
                f"there is nothing to train: none of the {len(self.trained)} parameters of this "
                f"{type(student).__name__} requires a gradient; call requires_grad_(True) on the "
                "model before it is prepared"
            )
        if training.optimizer == "sgd":
            self.optimizer: Optimizer = torch.optim.SGD(groups, momentum=training.momentum)
        else:
            self.optimizer = torch.optim.Adam(groups)
        self._rates = [group["lr"] for group in groups]
        self.average = [p.detach().clone() for p in self.trained] if training.ema_decay > 0 else []
        self.done = 0
        self.attached = False
        self.attach()

    def _groups(self) -> list[dict[str, Any]]:
        training = self.config.training
        layers = {id(layer.parameter): layer for layer in self.weights}
        stand_ins = {id(p) for _, module in self._pairs for p in module.parameters()}
        own = [
            p
            for p in self.student.parameters()
            if p.requires_grad and id(p) not in layers and id(p) not in stand_ins
        ]
        gaps = [self._gap(layer) if training.relative_lr else 1.0 for layer in layers.values()]
        groups: list[dict[str, Any]] = [
            {
                "params": [layer.parameter],
                "lr": training.lr * gap,
                "weight_decay": training.weight_decay,
            }
            for layer, gap in zip(layers.values(), gaps, strict=True)
        ]
        mean_gap = sum(gaps) / len(gaps)
        groups.append({"params": own, "lr": training.lr * mean_gap * training.bias_lr})
        learned = [p for e in self.edges for p in e.parameters() if p.numel()]
        groups.append({"params": learned, "lr": training.edge_lr})
        groups += [{"params": [s.learned], "lr": s.rate(training.step_lr)} for s in self.steps]
        return [group for group in groups if group["params"]]

    @staticmethod
    def _gap(layer: QuantLayer) -> float:
        """Mean distance of neighbouring levels, in units of the parameter."""
        levels = layer.levels()
        gap = float((levels[:, 1:] - levels[:, :-1]).mean())
        seen, raw = float(layer.weight.norm()), float(layer.parameter.detach().norm())
        return gap * (raw / seen if seen > 0 else 1.0)

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
        for layer, learned in zip(self.weights, self.edges, strict=False):
            learned.bake(layer)
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
        learned = [p.detach().clone() for p in self.trained]
        with torch.no_grad():
            for parameter, mean in zip(self.trained, self.average, strict=True):
                parameter.copy_(mean)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.trained, learned, strict=True):
                    parameter.copy_(value)

    # ---- steps ---------------------------------------------------------------------------------

    def update(self, loss: Tensor) -> float:
        """One optimizer step; returns the gradient's norm."""
        training = self.config.training
        self._set_rates()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        limit = training.grad_clip if training.grad_clip > 0 else math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.trained, limit))
        before = (
            [s.parameter.detach().clone() for s in self.weights] if training.crossing > 0 else []
        )
        self.optimizer.step()
        for layer, old in zip(self.weights, before, strict=False):
            _scale_update(layer.parameter, old, layer.levels(), layer.rows, training.crossing)
        self.done += 1
        with torch.no_grad():
            for mean, parameter in zip(self.average, self.trained, strict=False):
                mean.lerp_(
                    parameter,
                    1 - min(training.ema_decay, (1 + self.done) / (10 + self.done)),
                )
        return norm

    def _set_rates(self) -> None:
        share = self.done / max(1, self.config.steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
        factor = cosine if self.config.training.schedule == "cosine" else 1.0
        rising = self.config.training.warmup * self.config.steps
        factor *= min(1.0, (self.done + 1) / max(rising, 1.0))
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor

    # ---- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Learned values, their moving average, the optimizer."""
        return {
            "values": [p.detach().clone() for p in self.trained],
            "average": [m.clone() for m in self.average],
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
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
