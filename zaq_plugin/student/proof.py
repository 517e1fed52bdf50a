"""Proof at the hand-over: a prepared model whose quantizers are off must be the float model.

Hosts fold, trace and rewrite; what they get wrong is found here, on the inputs at hand, and named
by the first layer that sees something else than in the float model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin.student.batches import Call, fresh
from zaq_plugin.student.layer import QuantLayer
from zaq_plugin.student.modes import evaluating
from zaq_plugin.student.view import student_of

LEAST_DB = 80.0
"""Of the outputs; float32 arithmetic in another order is 100 dB and more."""


def require_float_function(
    prepared: nn.Module,
    float_model: nn.Module,
    example_inputs: tuple[Any, ...],
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
        ValueError: If it is lower; the text names the first layer whose input differs.
    """
    teacher = student_of(prepared).twin()
    view = student_of(teacher)
    call: Call = (tuple(example_inputs), {})
    with view.evaluating(), evaluating(float_model):
        expected = float_model(*fresh(call)[0])
        ratio = sqnr(expected, view.run(fresh(call)))
        if ratio >= least_db or math.isnan(ratio):
            return ratio
        place = _first_difference(view, float_model, call, least_db)
    raise ValueError(
        f"the prepared model is not the float model: with all quantizers off its output has "
        f"{ratio:.1f} dB ({least_db:.0f} are demanded) on the example inputs, and {place}. The "
        "host has rewritten that part wrongly: leave it out by an override (None), or write it in "
        "another way; check=False goes on all the same"
    )


def _first_difference(view: Any, float_model: nn.Module, call: Any, least_db: float) -> str:
    """Where the two part, in words."""
    seen: dict[str, Tensor] = {}
    handles = []
    for name in view.layers():
        try:
            module = float_model.get_submodule(name)
        except AttributeError:
            continue

        def keep(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            seen.setdefault(name, (args[0] if args else next(iter(kwargs.values()))).clone())

        handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))
    try:
        float_model(*fresh(call)[0])
    finally:
        for handle in handles:
            handle.remove()
    before, found = "the input", ""

    def compare(layer: QuantLayer, x: Tensor) -> None:
        nonlocal before, found
        expected = seen.get(layer.name)
        if found or expected is None:
            return
        if expected.shape != x.shape or sqnr(expected, x) < least_db:
            found = f"layer {layer.name!r} is the first whose input differs, behind {before}"
        before = f"layer {layer.name!r}"

    view.run(fresh(call), compare)
    return found or f"what differs lies behind {before}"


def sqnr(expected: Any, found: Any) -> float:
    """The lowest signal-to-noise ratio of all floating-point outputs in dB; infinity if equal."""
    pairs = list(zip(tensors(expected), tensors(found), strict=False))
    worst = math.inf
    for a, b in pairs:
        if a.shape != b.shape:
            return -math.inf
        noise = (a.double() - b.double()).square().sum()
        if float(noise) > 0:
            power = a.double().square().sum()
            worst = min(worst, float(10 * torch.log10(power / noise)))
    return worst


def tensors(value: Any) -> list[Tensor]:
    """The floating-point tensors of a model's output, in order, finite ones only."""
    if isinstance(value, Tensor):
        value = value.detach()
        return [value.nan_to_num(0.0, 0.0, 0.0)] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        value = list(value.values())
    return [t for v in value for t in tensors(v)] if isinstance(value, list | tuple) else []
