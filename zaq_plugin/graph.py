"""Graphs of torch.fx: what every reader of one asks."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from torch import nn


def attribute_at(model: nn.Module, path: str) -> Any:
    """What a ``get_attr`` node reads: a parameter, a buffer, a module, by its dotted name.

    Raises:
        AttributeError: there is nothing of this name.
    """
    return attrgetter(path)(model)


def name_of_target(target: Any) -> str:
    """A node's target as a word: a method's name, a function's, or how it is written."""
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def free_name(module: nn.Module, name: str, before: str = "", behind: str = "_") -> str:
    """A name that a module has nothing under: this one, with as much around it as it takes."""
    while getattr(module, name, None) is not None:
        name = before + name + behind
    return name
