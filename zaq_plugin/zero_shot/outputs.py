"""Models with several outputs (segmentation, detection heads) as the discrepancies see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

OutputAdapter = Callable[[object], list[Tensor]]


def all_outputs(output: object) -> list[Tensor]:
    """Every floating-point tensor of an output, depth first: lists, tuples, dicts, dataclasses.

    Raises:
        TypeError: if there is none.
    """
    tensors: list[Tensor] = []
    _collect(output, tensors)
    if not tensors:
        raise TypeError(
            f"the model's output ({type(output).__name__}) holds no floating-point tensor; give an "
            "output adapter (output) -> list of tensors."
        )
    return tensors


def _collect(value: object, tensors: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            tensors.append(value)
    elif isinstance(value, Mapping):
        for part in value.values():
            _collect(part, tensors)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for part in value:
            _collect(part, tensors)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            _collect(getattr(value, name), tensors)


def select(*keys: int | str) -> OutputAdapter:
    """An adapter that takes some of the outputs: by position of a list, or by key of a dict."""
    if not keys:
        raise ValueError("select: name at least one output, by position or key.")

    def adapt(output: object) -> list[Tensor]:
        try:
            parts = [output[key] for key in keys]  # type: ignore[index]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"select: the model's output ({type(output).__name__}) has no {keys}."
            ) from error
        return all_outputs(parts)

    return adapt


def detached(output: object) -> object:
    """The same structure without gradients: tensors, lists, tuples and dicts."""
    if isinstance(output, Tensor):
        return output.detach()
    if isinstance(output, Mapping):
        return {key: detached(value) for key, value in output.items()}
    if isinstance(output, list | tuple):
        parts: list[Any] = [detached(value) for value in output]
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    return output


def mean_over(
    function: Callable[[Tensor, Tensor], Tensor], teacher: list[Tensor], student: list[Tensor]
) -> Tensor:
    """Mean of a discrepancy over the outputs."""
    if len(teacher) != len(student):
        raise ValueError(
            f"teacher and student have {len(teacher)} and {len(student)} outputs; give an output "
            "adapter that takes the same ones from both."
        )
    return torch.stack([function(t, s) for t, s in zip(teacher, student, strict=True)]).mean()
