"""Weights that a module computes anew at every call, turned into plain parameters.

weight_norm, spectral_norm, pruning and whatever else is registered by
``torch.nn.utils.parametrize`` compute a weight from other tensors. In evaluation mode it is a
constant, and a constant is what gets quantized. So it is in layers whose own forward computes the
weight, such as weight-standardised convolutions (`computed_weights`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import (
    parametrize,
    prune,
    remove_spectral_norm,
    remove_weight_norm,
)

from zaq_plugin.ptq.computed_weights import bake_layer
from zaq_plugin.student.fake_quantizers import is_fake_quantizer

ModelT = TypeVar("ModelT", bound=nn.Module)


def bake_parametrizations(model: nn.Module) -> list[str]:
    """Turn every computed weight into a plain parameter with its evaluation-mode value, in place.

    Known are all parametrizations of ``torch.nn.utils.parametrize`` (fake-quantizers excepted),
    and the older ``weight_norm``, ``spectral_norm`` and ``prune``, which work by hooks; on
    whatever tensor of whatever module they sit; and subclasses of torch's convolutions and linear
    layers whose forward computes another weight from ``.weight``, unless it depends on the input.
    What the model computes in evaluation mode does not change, its modes neither.

    Args:
        model: Any module; it is changed, so hand over a copy (`copied`).

    Returns:
        The names of the modules that were baked, in the model's order (empty for the root).

    Raises:
        ValueError: If a parametrization fails; it names the module.
    """
    done: list[str] = []
    shared: list[_Shared] = []
    for name, module in list(model.named_modules()):
        with _evaluating(module), torch.no_grad():
            try:
                baked = _bake_registered(module, shared) + _bake_hooks(module) + bake_layer(module)
            except (RuntimeError, TypeError, ValueError, AttributeError, KeyError) as error:
                raise ValueError(
                    f"the weight of layer {name!r} ({type(module).__name__}) is computed, and "
                    f"computing it failed ({type(error).__name__}: {error}); remove its "
                    "parametrization first (torch.nn.utils.parametrize.remove_parametrizations)"
                ) from error
        if baked:
            done.append(name)
    return done


def copied(model: ModelT) -> ModelT:
    """A deep copy, also of a model whose modules hold computed tensors with a gradient history.

    ``copy.deepcopy`` refuses those, and the older weight_norm and pruning leave one in every layer;
    the copy gets their values.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)


_Shared = tuple[list[Tensor], Tensor]
"""What a baked tensor was computed from, and what it is now."""


def _bake_registered(module: nn.Module, shared: list[_Shared]) -> int:
    """Remove the parametrizations of one module; gives how many tensors were baked."""
    if not parametrize.is_parametrized(module):
        return 0
    parametrizations: Any = module.parametrizations
    count = 0
    for tensor_name, chain in list(parametrizations.items()):
        if any(is_fake_quantizer(part) for part in chain):
            continue
        sources = [*chain.parameters(recurse=False), *chain.buffers(recurse=False)]
        value = getattr(module, tensor_name).detach().clone()
        # A single source comes back as it was, for another module may hold it as well.
        one = hasattr(chain, "original")
        _own_class(module)
        parametrize.remove_parametrizations(module, tensor_name, leave_parametrized=not one)
        new = _tied(shared, sources, value)
        if new is None:
            new = value
            if any(isinstance(source, nn.Parameter) for source in sources):
                new = nn.Parameter(value, requires_grad=any(s.requires_grad for s in sources))
            shared.append((sources, new))
        _put(module, tensor_name, new)
        count += 1
    return count


def _own_class(module: nn.Module) -> None:
    """Give a parametrized module a class that no other one has.

    A deep copy shares its class with the model that it was copied from, and removing a
    parametrization takes the property off the class.
    """
    shared = type(module)
    space = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
    module.__class__ = type(shared.__name__, shared.__bases__, space)


def _tied(shared: list[_Shared], sources: list[Tensor], value: Tensor) -> Tensor | None:
    """What another module's tensor of the same sources and the same value was baked to."""
    for others, new in shared:
        same = len(others) == len(sources)
        same = same and all(a is b for a, b in zip(others, sources, strict=True))
        if same and torch.equal(new, value):
            return new
    return None


def _bake_hooks(module: nn.Module) -> int:
    """Undo weight_norm, spectral_norm and pruning by hooks; gives how many tensors were baked."""
    count = 0
    computed = [name for name, value in vars(module).items() if isinstance(value, Tensor)]
    for name in reversed(computed):  # the latest first: it may stand on an earlier one
        sources = {
            key: value
            for key, value in module.named_parameters(recurse=False)
            if key.startswith(f"{name}_")
        }
        original = sources.get(f"{name}_orig")
        if original is not None and prune.is_pruned(module):
            # prune.remove writes into the original, which another module may hold as well.
            setattr(module, f"{name}_orig", nn.Parameter(original.detach().clone()))
        if any(_removed(way, module, name) for way in _REMOVERS):
            baked = getattr(module, name)
            baked.requires_grad_(any(value.requires_grad for value in sources.values()))
            _put(module, name, baked)  # recurrent layers keep a list of their weights
            count += 1
    return count


_REMOVERS = (remove_weight_norm, remove_spectral_norm, prune.remove)


def _removed(remove: Any, module: nn.Module, name: str) -> bool:
    """Whether the remover of one kind of hook found one on this tensor."""
    try:
        remove(module, name)
    except ValueError as error:
        if "not found" in str(error) or "has to be pruned" in str(error):
            return False
        raise
    return True


def _put(module: nn.Module, name: str, value: Tensor) -> None:
    if isinstance(value, nn.Parameter):
        if name in module._buffers or name not in module._parameters:
            delattr(module, name)
        setattr(module, name, value)
    else:
        delattr(module, name)
        module.register_buffer(name, value)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = {part: part.training for part in module.modules()}
    try:
        for part in modes:
            part.training = False
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
