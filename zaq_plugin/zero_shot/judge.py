"""The judge: decides, on synthetic images that nothing trains on, which state is handed back.
Reconstruction learns from the images it has; with few of them, or few iterations, rounding with
error feedback can be better. Nobody knows beforehand: both are tried, and the judge decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin.ptq.output_distance import agreements, divergences, spread, threshold
from zaq_plugin.student.modes import State, copied_state, to_evaluation, to_quantized_evaluation
from zaq_plugin.zero_shot.discrepancy import OutputAdapter, absolute_error

_FLOOR = 1e-3
"""Share of the best state's mean divergence below which an image's divergence counts as none."""


@dataclass(frozen=True)
class Verdict:
    """How a state did on the validation images.

    Attributes:
        label: Which state: ``start``, ``reconstructed``, ``step 300``, ``average at step 300``.
        divergence: Mean distance of its outputs from the teacher's; for an output with one channel
            the squared error relative to the teacher's spread, unless the loss is ``l1``.
        agreement: Share of images (and positions) whose top class is the teacher's; with one
            channel, of those on the teacher's side (of 0, or of its mean).
        accepted: Whether it became the best state.
    """

    label: str
    divergence: float
    agreement: float
    accepted: bool


class Judge:
    """Compares states of a student on a fixed set of images.

    The best state is displaced only by one that is better beyond doubt: on the same images its
    divergence is lower by more than ``certainty`` standard errors, and its agreement higher by at
    least half as many (or both always agree alike). If its divergence is less than half of the
    best one's, it is enough that agreement is not lower, and doubt is measured on logarithms: a
    few images with a large share of the divergence would hide what happens to all others. The
    first state is the best until then; of many states that are hardly better than it, the luckiest
    would be chosen otherwise.

    Args:
        teacher: P.
        images: (N, C, H, W) validation images.
        adapter: From the model's output to tensors.
        loss: ``kl`` or ``l1``, the divergence; ``kl`` of an output with one channel is the squared
            error relative to the teacher's spread over all images.
        certainty: See above.
    """

    def __init__(
        self,
        teacher: nn.Module,
        images: Tensor,
        adapter: OutputAdapter,
        loss: str = "kl",
        certainty: float = 2.0,
    ) -> None:
        self.images, self.adapter, self.loss, self.certainty = images, adapter, loss, certainty
        self.targets = self._outputs(teacher)
        whole = [torch.cat(parts) for parts in zip(*self.targets, strict=True)]
        self._spreads = [spread(output) for output in whole]
        self._borders = [threshold(output) for output in whole]
        self.history: list[Verdict] = []
        self.best: Verdict | None = None
        self.best_state: dict[str, Tensor] = {}
        self._best_each: Tensor | None = None

    @torch.no_grad()
    def _outputs(self, model: nn.Module) -> list[list[Tensor]]:
        modes = {m: m.training for m in model.modules()}
        to_evaluation(model)
        try:
            return [self.adapter(model(part.clone())) for part in self.images.split(64)]
        finally:
            for module, mode in modes.items():
                module.training = mode

    def look(self, student: nn.Module, label: str, certainty: float | None = None) -> Verdict:
        """Judge the student as it stands, and keep its state if it is the best.

        Args:
            student: As it stands.
            label: Of its state.
            certainty: In place of the judge's: 0 for a state with as good a claim as the best one.
        """
        each, agreeing = self._measure(student)
        divergence, agreement = float(each.mean()), float(agreeing.mean())
        accepted = self._better(each, agreeing, self.certainty if certainty is None else certainty)
        verdict = Verdict(label, divergence, agreement, accepted)
        self.history.append(verdict)
        if accepted:
            self.best, self._best_each = verdict, torch.stack([each, agreeing])
            self.best_state = copied_state(student)
        return verdict

    def _measure(self, student: nn.Module) -> tuple[Tensor, Tensor]:
        each, agreeing = [], []
        for teacher_parts, student_parts in zip(self.targets, self._outputs(student), strict=True):
            pairs = list(zip(teacher_parts, student_parts, strict=True))
            apart = [
                _per_sample(t, s, self.loss, scale)
                for (t, s), scale in zip(pairs, self._spreads, strict=True)
            ]
            each.append(torch.stack(apart).mean(0))
            same = [
                agreements(t, s, divide=border)
                for (t, s), border in zip(pairs, self._borders, strict=True)
            ]
            agreeing.append(torch.stack(same).mean(0))
        return torch.cat(each).double(), torch.cat(agreeing).double()

    def _better(self, each: Tensor, agreeing: Tensor, certainty: float) -> bool:
        divergence = float(each.mean())
        if not math.isfinite(divergence):
            return False
        if self._best_each is None:
            return True
        best, gain = self._best_each[0], agreeing - self._best_each[1]
        gap = each - best
        if divergence < 0.5 * float(best.mean()):
            floor = _FLOOR * float(best.mean())
            ratio = (each.clamp(min=floor) / best.clamp(min=floor)).log()
            surely = min(_errors(gap), _errors(ratio)) < -certainty
            return surely and float(gain.mean()) >= 0
        surely = _errors(gap) < -certainty
        return surely and float(gain.mean()) >= certainty / 2 * _standard_error(gain)

    def restore_best(self, student: nn.Module) -> Verdict:
        """Put the best state into the student; returns its verdict."""
        if self.best is None:
            raise ValueError("Judge.restore_best: nothing was judged yet; call look() first.")
        student.load_state_dict(self.best_state)
        return self.best

    def state_dict(self) -> dict[str, Any]:
        """History, best state, images."""
        return {
            "images": self.images,
            "history": [[v.label, v.divergence, v.agreement, v.accepted] for v in self.history],
            "best": None if self.best is None else self.history.index(self.best),
            "best_state": self.best_state,
            "best_each": self._best_each,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo `state_dict` (the images are given to the constructor)."""
        self.history = [Verdict(*values) for values in state["history"]]
        self.best = None if state["best"] is None else self.history[state["best"]]
        self.best_state = dict(state["best_state"])
        self._best_each = state["best_each"]


def _errors(values: Tensor) -> float:
    """The mean in standard errors."""
    return float(values.mean()) / max(_standard_error(values), 1e-30)


def _standard_error(values: Tensor) -> float:
    return float(values.std(correction=0)) / math.sqrt(max(1, len(values)))


def _per_sample(teacher: Tensor, student: Tensor, loss: str, scale: Tensor) -> Tensor:
    if loss == "l1":
        return absolute_error(teacher, student).reshape(len(teacher), -1).mean(1)
    return divergences(teacher, student, scale=scale)


Alternative = Callable[[nn.Module, Sequence[Tensor]], object]
"""Changes the parameters of a calibrated student in place, given it and batches of images."""


def states_of(
    student: nn.Module, alternatives: Mapping[str, Alternative], batches: Sequence[Tensor]
) -> dict[str, State]:
    """The student's state after each alternative, all from the state in which it comes.

    What an alternative adds to the student (a bias, a buffer) stays there, and in the other states,
    as zeros.

    Args:
        student: Calibrated; put back afterwards.
        alternatives: By name.
        batches: What each is called with.
    """
    first, states = copied_state(student), {}
    for name, alternative in alternatives.items():
        alternative(student, batches)
        to_quantized_evaluation(student)
        states[name] = copied_state(student)
        student.load_state_dict(_filled(first, student))
    return {name: _filled(state, student) for name, state in states.items()}


def weigh(student: nn.Module, judge: Judge, states: Mapping[str, State]) -> None:
    """Let the judge look at each; the student is left in the last one that became the best.

    Args:
        student: Stays as it is if none does.
        judge: Has looked at the student as it stands.
        states: From `states_of`.
    """
    best = copied_state(student)
    for name, state in states.items():
        student.load_state_dict(state)
        # Neither has the better claim: with few images, doubt would always favour the first.
        if judge.look(student, name, certainty=0.0).accepted:
            best = state
    student.load_state_dict(best)


def _filled(state: State, student: nn.Module) -> State:
    """The state with zeros for what it lacks."""
    values = student.state_dict().items()
    return {k: state[k] if k in state else torch.zeros_like(v) for k, v in values}
