"""`verify`: does a `.pte` file hold the model's integers, and compute what the model does?"""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor, nn

from zaq_executorch.host import HOST
from zaq_executorch.reading import PteFile, is_layer, read, runner
from zaq_pt2e.device.verdict import DeviceVerification, Orders, Way, verified

ORDERS: Orders = {4: [(0, 2, 3, 1), (1, 2, 3, 0)], 3: [(0, 2, 1)]}
"""How XNNPACK lays out weights: channels last; depthwise ones with their channels last."""


def verify(
    path: str | os.PathLike[str], model: nn.Module, inputs: Tensor | tuple[Any, ...]
) -> DeviceVerification:
    """Read a file, compare its weights with the model's, and run it.

    It is run with one sample and with the largest batch that it says it takes (the inputs repeated,
    if they are fewer). The outputs may differ from the model's by one step of their grid, or by
    what the model itself moves when its values are off by about a step of theirs, see
    `zaq_pt2e.device.verdict`.

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
        runtime="ExecuTorch with XNNPACK",
        read=read,
        orders=ORDERS,
        tell=_tell,
        ways=lambda file: _ways(path, file),
    )


def _tell(verdict: DeviceVerification, file: PteFile) -> None:
    verdict.outside, verdict.dynamic = file.outside, file.dynamic
    for name in file.outside:
        if is_layer(name):
            verdict.problems.append(f"{name} is outside XNNPACK's delegate.")
    if file.unwritten:
        verdict.problems.append(
            f"{file.unwritten} outputs of XNNPACK's delegate are never written: what read them was "
            "left outside."
        )


def _ways(path: str | os.PathLike[str], file: PteFile) -> list[Way]:
    run = runner(path)  # one for both: what it remembers of a small batch must not harm
    return [
        Way(n, "", lambda: run) for n in sorted({1, file.batch} if file.dynamic else {file.batch})
    ]
