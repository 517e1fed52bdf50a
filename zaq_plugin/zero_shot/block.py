"""`Block`: a piece of a student with its counterpart in the teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

Call = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Block:
    """One block of a student and its counterpart in the teacher.

    Attributes:
        name: Module name, or ``first..last`` node names in a graph.
        student: The block of the student, x to y.
        teacher: The same block of the teacher.
        weights: Names of the weight fake-quantizers inside.
        modules: The modules of the student that the block consists of (for train / eval mode).
        student_input: Runs the student on images up to this block and returns the block's input.
        teacher_input: The same for the teacher.
        chained: Whether its input is the output of the block before it, as it stands.
    """

    name: str
    student: Call
    teacher: Call
    weights: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    student_input: Call
    teacher_input: Call
    chained: bool = False
