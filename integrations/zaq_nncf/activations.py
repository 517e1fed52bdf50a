"""Activations of fewer than 8 bits: which of NNCF's quantizers become narrower, and their ranges.

NNCF places 8-bit quantizers and knows no others for CPUs. The multiplier's width concerns inputs of
convolutions and matrix products; the model's own input and what is only added or pooled stay wide.
Where both read a tensor (a residual trunk), NNCF's quantizer stays, and the layers get their own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

from torch import nn

from zaq_nncf._compat import hooks_of
from zaq_nncf.activation_quantizers import ActivationQuantizer
from zaq_nncf.calibration import own
from zaq_plugin.layers import LAYERS
from zaq_plugin.student.fake_quantizers import set_switches
from zaq_plugin.student.modes import evaluating


def give_own_grids(model: nn.Module, torn: Mapping[str, Iterable[tuple[str, int]]]) -> bool:
    """Give layers a quantizer of their own where others read their input, too; in place.

    Args:
        model: From ``nncf.quantize`` with PWLQ registered.
        torn: See `Placement.torn`.

    Returns:
        Whether there were any: NNCF's graph is another one then.
    """
    storage, done = hooks_of(model), False
    for name, layers in torn.items():
        wide = storage.get_submodule(name)
        if not isinstance(wide, ActivationQuantizer):
            continue
        own_grid = copy.deepcopy(wide)
        for operator, port in layers:
            storage.register_pre_function_hook(operator, port, own_grid)
            done = True
    return done


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


def called_later(model: nn.Module, read: Container[str], batches: Iterable[Any]) -> set[str]:
    """The weights of layers that only some batches call; NNCF looks at the first one alone.

    Args:
        model: Float, with the modules that NNCF saw.
        read: Names of the parameters that the first batch reads.
        batches: See `narrow_activations`; none is run if the first one calls every layer.
    """
    first_names = {id(p): name for name, p in model.named_parameters()}
    unread: dict[str, str] = {}
    for name, module in model.named_modules():
        parameter = first_names.get(id(module.weight)) if isinstance(module, LAYERS) else None
        if parameter is not None and parameter not in read:
            unread[name] = parameter
    weights: set[str] = set()
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, weight=weight: weights.add(weight)
        )
        for name, weight in unread.items()
    ]
    try:
        with evaluating(model):
            for batch in batches if unread else ():
                call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return weights


def call(model: nn.Module, batch: Any) -> Any:
    """Run a model on a copy of an input as NNCF's data set gives it."""
    batch = own(batch)
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple) else model(batch)
