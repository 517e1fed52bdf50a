"""Running a `.tflite` file, whatever its in- and outputs are."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from numpy.typing import NDArray
from torch import Tensor

from zaq_pt2e.device.tolerance import Run

_WITHOUT = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES


def interpreter_of(path: str | os.PathLike[str], *, delegate: bool = True) -> Any:
    """LiteRT's interpreter of a file, one thread.

    Args:
        path: The file.
        delegate: Let XNNPACK run what it can; else the tool's own kernels run all.

    Raises:
        ValueError: it cannot be loaded.
    """
    kind = OpResolverType.AUTO if delegate else _WITHOUT
    try:
        interpreter = Interpreter(
            model_path=os.fspath(path), num_threads=1, experimental_op_resolver_type=kind
        )
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"LiteRT cannot load it: {text}") from error
    return interpreter


def runner(path: str | os.PathLike[str], *, delegate: bool = True) -> Run:
    """What runs a batch through a file, floats in and out.

    Raises:
        ValueError: LiteRT cannot load it, or, when it runs, run it.
    """
    interpreter = interpreter_of(path, delegate=delegate)
    places, outputs = interpreter.get_input_details(), interpreter.get_output_details()

    def run(inputs: tuple[Tensor, ...]) -> list[Tensor]:
        try:
            for place, x in zip(places, inputs, strict=True):
                interpreter.set_tensor(place["index"], _to_grid(x.numpy(), place))
            interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            text = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(f"LiteRT cannot run it: {text}") from error
        return [
            torch.from_numpy(_from_grid(interpreter.get_tensor(o["index"]), o)) for o in outputs
        ]

    return run


def one_thread() -> None:
    """Nothing to do: interpreters here have one thread each."""


def _to_grid(x: NDArray[Any], place: dict[str, Any]) -> NDArray[Any]:
    x = np.ascontiguousarray(x)
    if place["dtype"] is not np.int8:
        return x
    scale, zero = place["quantization"]
    return np.clip(np.rint(x / np.float32(scale)) + zero, -128, 127).astype(np.int8)


def _from_grid(y: NDArray[Any], place: dict[str, Any]) -> NDArray[Any]:
    if place["dtype"] is not np.int8:
        return y.copy()
    scale, zero = place["quantization"]
    return ((y.astype(np.float32) - zero) * np.float32(scale)).astype(np.float32)
