"""`verify`: does a `.pte` file hold the model's integers, and compute what the model does?"""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

from zaq_executorch.host import HOST
from zaq_executorch.reading import PteFile, is_layer, read
from zaq_executorch.running import runner
from zaq_pt2e.device.making import sized
from zaq_pt2e.device.signed import to_int8
from zaq_pt2e.device.verdict import DeviceVerification
from zaq_pt2e.device.weights import int8_weights, missing

ORDERS: dict[int, list[tuple[int, ...]]] = {4: [(0, 2, 3, 1), (1, 2, 3, 0)], 3: [(0, 2, 1)]}
"""How XNNPACK lays out weights: channels last; depthwise ones with their channels last."""


def verify(
    path: str | os.PathLike[str], model: nn.Module, inputs: Tensor | tuple[Any, ...]
) -> DeviceVerification:
    """Read a file, compare its weights with the model's, and run it.

    It is run with one sample and with the largest batch that it says it takes (the inputs repeated,
    if they are fewer). The outputs may differ from the model's by one step of their grid, or by
    what the model itself moves when its values are off by about a step of theirs, see
    `zaq_pt2e.device.tolerance`.

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
    if not isinstance(model, GraphModule):
        raise TypeError(
            "verify: expected the graph that was exported, export(...).model; got "
            f"{type(model).__name__}."
        )
    arguments = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    graph = to_int8(model, HOST.name)
    verdict = DeviceVerification(os.fspath(path), "ExecuTorch with XNNPACK")
    try:
        file = read(path)
    except ValueError as error:
        verdict.problems.append(str(error))
        return verdict
    _tell(verdict, file)
    weights = int8_weights(graph)
    lacking = missing(weights, file.weights, ORDERS)
    verdict.problems += lacking
    verdict.weights = len(weights) - len(lacking)
    verdict.tolerance = file.output_step
    try:
        run = runner(path)
    except ValueError as error:
        verdict.problems.append(str(error))
        return verdict
    for size in sorted({1, file.batch} if file.dynamic else {file.batch}):
        try:
            verdict.compare(graph, run, sized(arguments, max(size, len(arguments[0]))), size)
        except ValueError as error:
            verdict.problems.append(f"batches of {size}: {error}")
    return verdict


def _tell(verdict: DeviceVerification, file: PteFile) -> None:
    verdict.operators, verdict.outside = file.operators, file.outside
    verdict.integer_layers, verdict.float_layers = file.integer_layers, file.float_layers
    verdict.batch, verdict.dynamic = file.batch, file.dynamic
    if not file.integer_layers:
        verdict.problems.append("no layer runs in integers: nothing in this file is quantized.")
    for name in file.outside:
        if is_layer(name):
            verdict.problems.append(f"{name} is outside XNNPACK's delegate.")
    if file.unwritten:
        verdict.problems.append(
            f"{file.unwritten} outputs of XNNPACK's delegate are never written: what read them was "
            "left outside."
        )
