"""Proof of a conversion: what a host makes of a student computes what the student computes.

Calibration leaves its first batch with the student; conversion, stripping and export run both
sides on it. Where the outputs are too far apart, the first layer that differs is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from zaq_plugin.student.batches import Call, fresh
from zaq_plugin.student.fake_quantizers import quantizing
from zaq_plugin.student.proof import Place, first_difference, run, sqnr
from zaq_plugin.student.recording import Passes, module_passes
from zaq_plugin.student.view import student_of

KEY = "zaq_inputs"
KERNELS_DB = 20.0
"""Demanded of int8 kernels, which round at other places than fake-quantizers do."""
NOISE_MARGIN_DB = 6.0
"""They may be so much further from the student than the student is from the float model."""
PLACE_DB = 25.0
"""Of a layer's output, where the place of a difference is looked for: a network can make much of a
small one."""
SAME_DB = 40.0
"""Demanded where both sides compute in float; a rounding that flips is all that may differ."""


class Held:
    """What a model keeps at hand for a proof. Its copies share it, its files do not hold it."""

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> Held:
        return self

    def __reduce__(self) -> tuple[type[Held], tuple[()]]:
        return Held, ()


def _home(model: nn.Module) -> dict[str, Any]:
    """Where a model keeps what its deep copies get, too."""
    home: dict[str, Any] = model.meta if isinstance(model, fx.GraphModule) else model.__dict__
    return home


def keep_inputs(model: nn.Module, call: Call | None) -> None:
    """Leave a batch with a model, or take it away (None)."""
    _home(model).pop(KEY, None)
    if call is not None:
        _home(model)[KEY] = Held(call)


def inputs_at_hand(model: nn.Module) -> Call | None:
    """The batch that calibration left with a model."""
    holder = _home(model).get(KEY) if hasattr(model, "__dict__") else None
    return holder.value if isinstance(holder, Held) else None


@dataclass(frozen=True)
class Side:
    """One of two models that are compared.

    Attributes:
        name: As errors call it: ``the converted model``.
        run: Its outputs on a batch.
        passes: What its layers are given and make, see `Passes`.
    """

    name: str
    run: Callable[[Call], Any]
    passes: Callable[[Call], Passes]


@dataclass(frozen=True)
class Difference:
    """Two sides that are too far apart.

    Attributes:
        ratio: SQNR of the outputs in dB.
        wanted: What is demanded.
        place: Where they part.
    """

    ratio: float
    wanted: float
    place: Place


@torch.no_grad()
def difference(
    source: Side,
    target: Side,
    call: Call,
    least_db: float,
    noise_db: Callable[[], float] | None = None,
) -> Difference | None:
    """Where two sides differ, or None if they do not.

    Args:
        source: The side that is right.
        target: What was made of it.
        call: What both are run on.
        least_db: Signal-to-noise ratio that is demanded of the outputs.
        noise_db: How far the source itself is from the float model; nothing is demanded that
            is more than `NOISE_MARGIN_DB` worse. Asked only where the ratio falls short.

    Raises:
        ValueError: If what was made cannot be run.
    """
    expected = source.run(fresh(call))
    try:
        output = target.run(fresh(call))
    except Exception as error:
        raise ValueError(
            f"{target.name} cannot be run on the batch at hand, which {source.name} takes: "
            f"{type(error).__name__}: {error}. Leave the layers that the host cannot convert out "
            "by overrides (None); check=False goes on all the same"
        ) from error
    ratio = sqnr(expected, output)
    if ratio >= least_db or math.isnan(ratio):
        return None
    if noise_db is not None:
        least_db = min(least_db, noise_db() - NOISE_MARGIN_DB)
        if ratio >= least_db:
            return None
    local_db = max(least_db, PLACE_DB)
    place = first_difference(source.passes(fresh(call)), target.passes(fresh(call)), local_db)
    return Difference(ratio, least_db, place)


def refusal(source: Side, target: Side, gap: Difference, advice: str) -> ValueError:
    """The error for a difference, to be raised."""
    return ValueError(
        f"{target.name} does not compute what {source.name} computes: on the batch at hand the "
        f"outputs have {gap.ratio:.1f} dB ({gap.wanted:.0f} are demanded), and {gap.place}. "
        f"{advice}; check=False goes on all the same"
    )


def student_side(name: str, model: nn.Module) -> Side:
    """A student's model as it computes: quantizers on, observers off."""
    view = student_of(model)

    def run(call: Call) -> Any:
        with quantizing(model), view.evaluating():
            return view.run(call)

    def passes(call: Call) -> Passes:
        with quantizing(model), view.evaluating():
            return view.passes(call)

    return Side(name, run, passes)


def module_side(
    name: str, model: nn.Module, layers: Mapping[str, nn.Module], unseen: Any = nullcontext
) -> Side:
    """Any model whose layers are modules, see `module_passes`."""
    return Side(
        name,
        lambda call: run(model, call),
        lambda call: module_passes(model, layers, call, unseen),
    )


def other_side(name: str, model: nn.Module, student: nn.Module) -> Side:
    """What a host made of a student: its layers have the student's names."""
    view = student_of(student)
    return Side(name, lambda call: run(model, call), lambda call: view.passes_of(model, call))


def noise_of(student: nn.Module, call: Call) -> float:
    """SQNR in dB of a student against its float twin."""
    view = student_of(student)
    teacher = view.twin()
    with torch.no_grad(), quantizing(student), view.evaluating():
        return sqnr(student_of(teacher).run(fresh(call)), view.run(fresh(call)))
