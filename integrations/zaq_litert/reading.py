"""What a `.tflite` file holds: operators, weights, grids of its in- and outputs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zaq_litert._compat import operators
from zaq_litert.running import interpreter_of
from zaq_plugin.archive.readers import Weight, channel_axis

LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "CONV_3D", "TRANSPOSE_CONV", "FULLY_CONNECTED")
_WEIGHT, _INPUT = {"TRANSPOSE_CONV": 1}, {"TRANSPOSE_CONV": 2}
_DELEGATE = "DELEGATE"


@dataclass
class TfliteFile:
    """What was read.

    Attributes:
        operators: As LiteRT calls them.
        weights: (int8 codes in its order, scales) of every int8 layer.
        integer_layers: Layers with int8 weights and an int8 input.
        float_layers: Other layers.
        batch: Samples of the first input.
        delegated: Whether XNNPACK takes operators of it.
        output_step: The largest step of the outputs' grids; 0 if there are none.
    """

    operators: Counter[str] = field(default_factory=Counter)
    weights: list[tuple[NDArray[np.int8], NDArray[np.float32]]] = field(default_factory=list)
    integer_layers: int = 0
    float_layers: int = 0
    batch: int = 1
    delegated: bool = False
    output_step: float = 0.0


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
    for codes, scales in read(path).weights:
        yield Weight(codes, channel_axis(codes.shape, len(scales)))


def _constant(interpreter: Any, tensor: dict[str, Any]) -> NDArray[np.int8]:
    values: NDArray[np.int8] = interpreter.get_tensor(tensor["index"])
    return values
