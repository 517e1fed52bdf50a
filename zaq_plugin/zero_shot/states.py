"""A student's state: taken as a copy, and the mode in which the student is judged and trained."""

from __future__ import annotations

from torch import Tensor, nn

from zaq_plugin.zero_shot.quantizers import set_switches
from zaq_plugin.zero_shot.twins import to_evaluation

State = dict[str, Tensor]


def copied_state(student: nn.Module) -> State:
    """Its ``state_dict``, which nothing that happens to the student changes."""
    return {name: value.detach().clone() for name, value in student.state_dict().items()}


def to_quantized_evaluation(student: nn.Module) -> None:
    """Observers off, fake-quantizers on, evaluation mode, in place."""
    set_switches(student, observe=False, quantize=True)
    to_evaluation(student)
