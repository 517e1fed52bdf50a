"""What users hand over: models in wrappers, their state dicts, and inputs that stay theirs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, fx, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

ValueT = TypeVar("ValueT")

_PARALLEL = "module."


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside `DataParallel` and its like, `AveragedModel`, or a compiled module.

    One inside the other is unwrapped, too; any other module is given back as it is. Nothing is
    changed or copied. Hooks of the wrapper itself are lost.
    """
    while True:
        inner: object = None
        if isinstance(model, DataParallel | DistributedDataParallel | AveragedModel):
            inner = model.module
        elif isinstance(model, nn.Module):
            inner = model._modules.get("_orig_mod")  # torch.compile's class is not public
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def unwrap_parts(model: nn.Module) -> None:
    """Unwrap every part of a model that is compiled or parallel, in place.

    Names lose what the wrapper added: ``body.module.0`` becomes ``body.0``. A graph, which calls
    its parts by name, is left as it is.
    """
    if isinstance(model, fx.GraphModule):
        return
    for name, part in list(model._modules.items()):
        if part is None:
            continue
        inner = unwrapped(part)
        if inner is not part:
            setattr(model, name, inner)
        unwrap_parts(inner)


def part_of(model: nn.Module, name: str) -> nn.Module:
    """A part by the name that it has where nothing is wrapped.

    Raises:
        AttributeError: If there is none.
    """
    part = unwrapped(model)
    for step in name.split(".") if name else ():
        part = unwrapped(part.get_submodule(step))
    return part


def without_prefixes(
    state: Mapping[str, ValueT], expected: Collection[str] = ()
) -> dict[str, ValueT]:
    """A state dict's entries without the names that wrappers add, in whatever order they stand.

    ``torch.compile`` adds ``_orig_mod``, of the model or of a part of it; `DataParallel` and its
    like put ``module.`` before every name, and `AveragedModel` counts in ``n_averaged``.

    Args:
        state: Names and tensors.
        expected: The model's own names; where they are the state's, nothing is removed.
    """
    names = dict(state)
    while set(names) != set(expected):
        shorter = {_without_compiled(name): value for name, value in names.items()}
        if len(shorter) < len(names):
            break  # two names would become one
        inside = {name: value for name, value in shorter.items() if name != "n_averaged"}
        if inside and all(name.startswith(_PARALLEL) for name in inside):
            shorter = {name.removeprefix(_PARALLEL): value for name, value in inside.items()}
        if set(shorter) == set(names):
            break
        names = shorter
    return names


def _without_compiled(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def cloned(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """The inputs with tensors of their own: a model may change its input in place.

    Lists, tuples and mappings inside are followed.
    """
    return tuple(_clone(value) for value in inputs)


def _clone(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: _clone(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_clone(part) for part in value)
    return value
