"""What a batch is: one meaning in every host."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a model."""


class Arguments(tuple[Any, ...]):
    """A batch all of whose entries are inputs of the model: no labels."""


def as_call(batch: object, inputs: int = 1) -> Call:
    """Positional and keyword arguments of the model for one batch.

    A tensor is the model's input; of a tuple or list, as data loaders give it, the first elements
    are the inputs and the rest (labels) is left out; a mapping is passed by keyword.

    Args:
        batch: One batch of a data loader.
        inputs: How many inputs the model takes, where that is known.

    Raises:
        TypeError: If the batch is none of these.
    """
    if isinstance(batch, Mapping):
        return (), {str(k): v for k, v in batch.items()}
    if isinstance(batch, Arguments):
        return tuple(batch), {}
    if isinstance(batch, tuple | list) and batch and isinstance(batch[0], Tensor):
        return tuple(batch[:inputs]), {}
    if isinstance(batch, Tensor):
        return (batch,), {}
    way_out = {
        "ndarray": ": torch.from_numpy(array) is a tensor, and floats are float64 in numpy",
        "str": ": load the images that it names first",
    }
    raise TypeError(
        "a batch must be a tensor, a tuple or list that starts with the model's input, or a "
        f"mapping of keyword arguments; got {type(batch).__name__}"
        + way_out.get(type(batch).__name__, "")
    )


def as_calls(batches: Iterable[Any], what: str, inputs: int = 1) -> list[Call]:
    """All batches as arguments of the model.

    Args:
        batches: See `as_call`.
        what: Who asks, for errors.
        inputs: How many inputs the model takes.

    Raises:
        ValueError: If there are no batches.
        TypeError: If ``batches`` is a single tensor, or a batch is of an unknown kind.
    """
    if isinstance(batches, Tensor):
        raise TypeError(
            f"{what}: batches must be an iterable of batches; got one tensor of shape "
            f"{tuple(batches.shape)}. Pass a list: [images], or images.split(32)."
        )
    calls = [as_call(batch, inputs) for batch in batches]
    if not calls:
        raise ValueError(f"{what} got no batches; give at least one batch of inputs")
    return calls


def merged(calls: Sequence[Call]) -> list[Call]:
    """All batches as one, where they are single tensors of one sample shape."""
    tensors = [args[0] for args, kwargs in calls if len(args) == 1 and not kwargs]
    if len(tensors) < len(calls) or any(x.dim() < 2 for x in tensors):
        return list(calls)
    if len({(x.shape[1:], x.dtype, x.device) for x in tensors}) > 1:
        return list(calls)
    return [((torch.cat(tensors),), {})]


def samples(call: Call) -> int:
    """How many samples a batch has; 0 where that cannot be seen."""
    tensors = [x for x in (*call[0], *call[1].values()) if isinstance(x, Tensor) and x.dim()]
    return tensors[0].shape[0] if tensors else 0


def fresh(call: Call) -> Call:
    """A copy of a batch for one run: models may change their inputs in place."""
    args, kwargs = call
    return tuple(_own(x) for x in args), {k: _own(v) for k, v in kwargs.items()}


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def inputs_of(model: nn.Module) -> int:
    """How many positional inputs a model needs, at least one: the rest of a tuple are labels."""
    if isinstance(model, fx.GraphModule):
        return max(1, sum(n.op == "placeholder" and not n.args for n in model.graph.nodes))
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return 1
    return max(1, sum(p.kind in kinds and p.default is p.empty for p in parameters))
