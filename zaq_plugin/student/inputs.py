"""What a model's operators say of a batch that they cannot take, in our own sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin.errors import in_short
from zaq_plugin.student.batches import Call

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
