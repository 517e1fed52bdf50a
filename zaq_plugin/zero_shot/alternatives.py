"""Other states of the student that the judge weighs against the reconstructed one.

Reconstruction learns from the images it has; with few of them, or few iterations, rounding with
error feedback can be better. Nobody knows beforehand: both are tried, and the judge decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from zaq_plugin.zero_shot.judge import Judge
from zaq_plugin.zero_shot.quantizers import set_switches
from zaq_plugin.zero_shot.twins import to_evaluation

Alternative = Callable[[nn.Module, Sequence[Tensor]], object]
"""Changes the parameters of a calibrated student in place, given it and batches of images."""

State = dict[str, Tensor]


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
    first, states = _copied(student), {}
    for name, alternative in alternatives.items():
        alternative(student, batches)
        set_switches(student, observe=False, quantize=True)
        to_evaluation(student)
        states[name] = _copied(student)
        student.load_state_dict(first, strict=False)
        with torch.no_grad():
            for added in states[name].keys() - first.keys():
                student.state_dict()[added].zero_()
    zeros = {k: torch.zeros_like(v) for k, v in student.state_dict().items()}
    return {name: {**zeros, **state} for name, state in states.items()}


def weigh(student: nn.Module, judge: Judge, states: Mapping[str, State]) -> None:
    """Let the judge look at each; the student is left in the last one that became the best.

    Args:
        student: Stays as it is if none does.
        judge: Has looked at the student as it stands.
        states: From `states_of`.
    """
    kept = _copied(student)
    for name, state in states.items():
        student.load_state_dict(state)
        # Neither has the better claim: with few images, doubt would always favour the first.
        if judge.look(student, name, certainty=0.0).accepted:
            kept = state
    student.load_state_dict(kept)


def _copied(student: nn.Module) -> State:
    return {name: value.detach().clone() for name, value in student.state_dict().items()}
