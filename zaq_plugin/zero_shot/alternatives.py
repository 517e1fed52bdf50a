"""Other states of the student that the judge weighs against the reconstructed one.

Reconstruction learns from the images it has; with few of them, or few iterations, rounding with
error feedback can be better. Nobody knows beforehand: both are tried, and the judge decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from zaq_plugin.student.modes import State, copied_state, to_quantized_evaluation
from zaq_plugin.zero_shot.judge import Judge

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
