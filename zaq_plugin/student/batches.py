"""What a batch is, in every host, and what is said of one that a model's operators cannot take."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn

from zaq_plugin.errors import in_short

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


def dense(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs whose values lie in the order of their axes, for a model that becomes a file.

    From another order, such as channels last, torch writes strides into the graph: one file gathers
    by them, position by position, another takes its inputs for lying so and does not check.
    """
    return tuple(x.contiguous() if isinstance(x, Tensor) else x for x in inputs)


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


_MISMATCH = re.compile(
    r"input type .* should be the same|expected scalar type|to have dtype|same dtype"
    r"|not implemented for '"
    r"|but got \d+ channels|cannot be multiplied|same reduction dim|must match|size mismatch"
    r"|expected \d(\.\.\d)?-?d|expected .* dimension|but got input of size|expected input"
    r"|normalized_shape|kernel size can't be greater|is invalid for input of size"
    r"|must have the same|guard failed|output size is too small|expected to have \d+ channels",
    re.IGNORECASE,
)
"""What torch says of a kind or a shape that does not fit, in its many operators."""
_KINDS = (RuntimeError, ValueError, IndexError, AssertionError)


@contextmanager
def taking(model: nn.Module, call: Call) -> Iterator[None]:
    """Run a model on a user's batch within this.

    Args:
        model: What is run.
        call: What it is run on.

    Raises:
        ValueError: Instead of torch's error, where the batch is of a kind or a shape that the model
            does not take: what came, what was expected, and what to do.
    """
    try:
        yield
    except _KINDS as error:
        if not _is_mismatch(error):
            raise
        given = [x for x in (*call[0], *call[1].values()) if isinstance(x, Tensor)]
        shown = ", ".join(f"{tuple(x.shape)} of {_name(x.dtype)}" for x in given) or "no tensor"
        raise ValueError(
            f"{type(model).__name__} does not take the batch that it was given, {shown}. "
            f"{_advice(model, given)} torch said: {in_short(error)}"
        ) from error


def _advice(model: nn.Module, given: list[Tensor]) -> str:
    tensors = chain(model.parameters(), model.buffers())
    weights = next((x.dtype for x in tensors if x.is_floating_point()), None)
    for x in given:
        if weights is not None and x.dtype != weights and x.is_floating_point():
            return f"Its weights are {_name(weights)}: pass images.to({weights})."
    for x in given:
        if weights is not None and x.dtype in (torch.uint8, torch.int8, torch.bool, torch.int16):
            return (
                f"Its weights are {_name(weights)}: pass images.float() / 255, normalised as they "
                "were in training."
            )
    channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return (
        "Pass batches of the shape that it was trained on, for images "
        f"(n, {channels or 'channels'}, height, width)."
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _is_mismatch(error: Any) -> bool:
    """Whether torch itself says so; our own sentences stay, and so does want of memory."""
    if type(error) not in _KINDS or not _MISMATCH.search(str(error)):
        return False
    if type(error) is RuntimeError:  # which we do not raise
        return True
    last = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    return "zaq_" not in str(last.tb_frame.f_globals.get("__name__", ""))
