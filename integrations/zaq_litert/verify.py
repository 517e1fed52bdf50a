"""`verify`: does a `.tflite` file hold the model's integers, and compute what the model does?"""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor, nn

from zaq_litert.host import HOST
from zaq_litert.reading import TfliteFile, read, runner
from zaq_pt2e.device.verdict import DeviceVerification, Orders, Way, verified

ORDERS: Orders = {3: [(0, 2, 1), (1, 2, 0)], 4: [(0, 2, 3, 1), (1, 2, 3, 0)]}
"""How LiteRT lays out weights: channels last; depthwise ones with their channels last."""


def verify(
    path: str | os.PathLike[str], model: nn.Module, inputs: Tensor | tuple[Any, ...]
) -> DeviceVerification:
    """Read a file, compare its weights with the model's, and run it twice.

    By LiteRT's interpreter with its XNNPACK delegate, which is its default, and without it. The
    outputs may differ from the model's by one step of their grid, or by what the model itself moves
    when its values are off by about a step of theirs, see `zaq_pt2e.device.verdict`.

    Args:
        path: A file from `export`.
        model: The graph that was exported: ``export(...).model``, or the converted model.
        inputs: What to run on: a tensor, or a tuple of inputs.

    Returns:
        The verdict; ``verify(...).require()`` raises if it is not OK.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: a model that is no graph.
    """
    return verified(
        path,
        model,
        inputs,
        who=HOST.name,
        runtime="LiteRT with and without XNNPACK",
        read=read,
        orders=ORDERS,
        tell=_tell,
        ways=lambda file: [
            Way(file.batch, "with XNNPACK", lambda: runner(path)),
            Way(file.batch, "without XNNPACK", lambda: runner(path, delegate=False)),
        ],
    )


def _tell(verdict: DeviceVerification, file: TfliteFile) -> None:
    if not file.delegated:
        verdict.remarks.append("XNNPACK takes nothing of it.")
