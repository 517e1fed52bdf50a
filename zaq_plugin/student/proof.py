"""Proof at the hand-over: a prepared model whose quantizers are off must be the float model.

Hosts fold, trace and rewrite; what they get wrong is found here, on the inputs at hand, and named
by the first layer that sees something else than in the float model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zaq_plugin.student.batches import Call, fresh, taking
from zaq_plugin.student.modes import evaluating
from zaq_plugin.student.recording import Passes, tensors
from zaq_plugin.student.view import student_of

LEAST_DB = 80.0
"""Of the outputs; float32 arithmetic in another order is 100 dB and more."""


def require_float_function(
    prepared: nn.Module,
    float_model: nn.Module,
    example_inputs: tuple[Any, ...] | Call,
    least_db: float = LEAST_DB,
) -> float:
    """Compare a prepared model's twin with the float model on example inputs.

    Args:
        prepared: A student's model.
        float_model: What was prepared; its modes and the inputs stay as they are.
        example_inputs: What both are called with.
        least_db: Signal-to-noise ratio of the outputs that is demanded.

    Returns:
        The ratio in dB; infinity where the outputs are equal.

    Raises:
        ValueError: If it is lower; the text names the first layer whose input or output differs.
    """
    teacher = student_of(prepared).twin()
    view = student_of(teacher)
    call = as_one_call(example_inputs)
    with view.evaluating(), evaluating(float_model), taking(float_model, call):
        ratio = sqnr(run(float_model, call), view.run(fresh(call)))
        if ratio >= least_db or math.isnan(ratio):
            return ratio
        place = first_difference(
            view.passes_of(float_model, fresh(call)),
            view.passes(fresh(call)),
            least_db,
            outputs=False,  # those of a layer that took a BatchNorm are others
        )
    raise ValueError(
        f"the prepared model is not the float model: with all quantizers off its output has "
        f"{ratio:.1f} dB ({least_db:.0f} are demanded) on the example inputs, and {place}. The "
        "host has rewritten that part wrongly: leave it out by an override (None), or write it in "
        "another way; check=False goes on all the same"
    )


def as_one_call(inputs: tuple[Any, ...] | Call) -> Call:
    """Example inputs, or a batch that is a call already, as a call."""
    if len(inputs) == 2 and isinstance(inputs[0], tuple) and isinstance(inputs[1], dict):
        return inputs[0], inputs[1]
    return tuple(inputs), {}


def run(model: nn.Module, call: Call) -> Any:
    """A model's outputs on a copy of a batch."""
    args, kwargs = fresh(call)
    return model(*args, **kwargs)


@dataclass(frozen=True)
class Place:
    """Where two models part.

    Attributes:
        layer: The first layer whose output differs; None where it lies behind the last one.
        given_alike: Whether that layer was given the same.
        before: The layer in front of it, or the last one; None for the input.
    """

    layer: str | None
    given_alike: bool
    before: str | None

    def __str__(self) -> str:
        before = "the input" if self.before is None else f"layer {self.before!r}"
        if self.layer is None:
            return f"what differs lies behind {before}"
        if self.given_alike:
            return (
                f"layer {self.layer!r} is the first whose output differs, though its input is right"
            )
        return f"layer {self.layer!r} is the first whose input differs, behind {before}"


def first_difference(
    right: Passes, passes: Passes, least_db: float, *, outputs: bool = True
) -> Place:
    """Compare layer by layer, in the order of the model that is right.

    Args:
        right: What its layers are given and make.
        passes: The same of the other model.
        least_db: Signal-to-noise ratio that is demanded.
        outputs: Compare what layers make, too, and not only what they are given.
    """
    before: str | None = None
    for name, (x, y) in right.items():
        if name not in passes:
            continue
        other_x, other_y = (  # a linear layer's rows may be in one axis there
            b.reshape(a.shape) if a.numel() == b.numel() else b
            for a, b in zip((x, y), passes[name], strict=True)
        )
        if sqnr(x, other_x) < least_db:
            return Place(name, False, before)
        if outputs and sqnr(y, other_y) < least_db:
            return Place(name, True, before)
        before = name
    return Place(None, False, before)


def sqnr(expected: Any, outputs: Any) -> float:
    """The lowest signal-to-noise ratio of all floating-point outputs in dB; infinity if equal."""
    pairs = list(zip(tensors(expected), tensors(outputs), strict=False))
    worst = math.inf
    for a, b in pairs:
        if a.shape != b.shape:
            return -math.inf
        noise = (a.double() - b.double()).square().sum()
        if float(noise) > 0:
            power = a.double().square().sum()
            worst = min(worst, float(10 * torch.log10(power / noise)))
    return worst
