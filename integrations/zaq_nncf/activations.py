"""Activations of fewer than 8 bits: which of NNCF's quantizers become narrower, and their ranges.

NNCF places 8-bit quantizers and knows no others for CPUs. The multiplier's width concerns inputs of
convolutions and matrix products; the model's own input and what is only added or pooled stay wide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from zaq_nncf._compat import hooks_of
from zaq_nncf.activation_quantizers import ActivationQuantizer
from zaq_plugin.student.fake_quantizers import set_switches
from zaq_plugin.student.modes import evaluating


def narrow_activations(
    model: nn.Module,
    names: Iterable[str],
    batches: Iterable[Any],
    bits: int,
    observer: Callable[..., Any] | None = None,
) -> None:
    """Give activation quantizers fewer than 8 bits, in place.

    Their ranges are measured anew, on the float model's values: what suits 256 levels is too wide
    for 16.

    Args:
        model: From ``nncf.quantize`` with PWLQ registered.
        names: Of the hooks, from `Placement.multiplied`.
        batches: Inputs as NNCF's data set gives them: tensors, tuples or mappings.
        bits: Width, 2 to 7.
        observer: Class or factory of the range observer; the 99.9th percentile by default.
    """
    storage = hooks_of(model)
    narrowed: list[ActivationQuantizer] = []
    for name in names:
        module: Any = storage.get_submodule(name)
        if isinstance(module, ActivationQuantizer) and module not in narrowed:
            module.narrow(bits, observer)
            narrowed.append(module)
    set_switches(model, quantize=False)
    try:
        for module in narrowed:
            module.grid.enable_observer()
        with evaluating(model):
            for batch in batches:
                call(model, batch)
    finally:
        set_switches(model, observe=False, quantize=True)


def call(model: nn.Module, batch: Any) -> Any:
    """Run a model on an input as NNCF's data set gives it."""
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple) else model(batch)
