"""A `.tflite` file: what it holds, and what it answers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from numpy.typing import NDArray
from torch import Tensor

from zaq_litert._compat import operators
from zaq_plugin.archive.readers import Weight
from zaq_pt2e.device.verdict import Run
from zaq_pt2e.device.weights import DeviceFile

# ---- Running it ----------------------------------------------------------------------------------

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


# ---- What it holds -------------------------------------------------------------------------------

LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "CONV_3D", "TRANSPOSE_CONV", "FULLY_CONNECTED")
_WEIGHT, _INPUT = {"TRANSPOSE_CONV": 1}, {"TRANSPOSE_CONV": 2}
_DELEGATE = "DELEGATE"


@dataclass
class TfliteFile(DeviceFile):
    """What was read.

    Attributes:
        delegated: Whether XNNPACK takes operators of it.
    """

    delegated: bool = False


def read(path: str | os.PathLike[str]) -> TfliteFile:
    """Read a file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no such file, or damaged.
    """
    if Path(path).read_bytes()[4:8] != b"TFL3":
        raise ValueError(f"{os.fspath(path)}: it does not begin as a .tflite file does.")
    try:
        interpreter = interpreter_of(path, delegate=False)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error
    file, tensors = TfliteFile(), {t["index"]: t for t in interpreter.get_tensor_details()}
    steps: dict[int, float] = {}
    for node in operators(interpreter):
        kind, inputs = node["op_name"], [int(i) for i in node["inputs"]]
        file.operators[kind] += 1
        if kind == "DEQUANTIZE":
            scales = tensors[inputs[0]]["quantization_parameters"]["scales"]
            steps.update({int(o): float(scales.max(initial=0)) for o in node["outputs"]})
        if kind not in LAYERS:
            continue
        weight, source = tensors[inputs[_WEIGHT.get(kind, 1)]], tensors[inputs[_INPUT.get(kind, 0)]]
        if weight["dtype"] is np.int8 and source["dtype"] is np.int8:
            file.integer_layers += 1
            scales = weight["quantization_parameters"]["scales"].astype(np.float32)
            file.weights.append((_constant(interpreter, weight), scales))
        else:
            file.float_layers += 1
    places, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    file.batch = int(places[0]["shape"][0]) if len(places[0]["shape"]) else 1
    own = [o["quantization_parameters"]["scales"].max(initial=0) for o in outputs]
    file.output_step = max([*map(float, own), *(steps.get(o["index"], 0.0) for o in outputs)])
    taken = operators(interpreter_of(path))
    file.delegated = any(node["op_name"] == _DELEGATE for node in taken)
    return file


def weights(path: str | os.PathLike[str]) -> Iterator[Weight]:
    """The int8 weights of a file, for `zaq_plugin.archive`.

    Raises:
        FileNotFoundError, ValueError: see `read`.
    """
    yield from read(path).archived()


def _constant(interpreter: Any, tensor: dict[str, Any]) -> NDArray[np.int8]:
    values: NDArray[np.int8] = interpreter.get_tensor(tensor["index"])
    return values
