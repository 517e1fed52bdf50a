"""A `.pte` file: what it holds, read from its bytes, and what it answers."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from executorch.runtime import Runtime
from numpy.typing import NDArray
from torch import Tensor

from zaq_executorch._compat import (
    DYNAMIC,
    INT8,
    KernelCall,
    TensorValue,
    delegates,
    parse_program,
    reset_threads,
)
from zaq_plugin.archive.readers import Weight
from zaq_pt2e.device.verdict import Run
from zaq_pt2e.device.weights import DeviceFile

LAYERS = ("XNNConv2d", "XNNDepthwiseConv2d", "XNNConvTranspose2d", "XNNFullyConnected")
HEAVY = ("convolution", "conv1d", "conv2d", "conv3d", "linear", "addmm", "aten::mm")
"""Parts of the names of operators that are layers, outside the delegate."""


@dataclass
class PteFile(DeviceFile):
    """What was read; operators are XNNPACK's, in all delegates.

    Attributes:
        outside: Operators outside them, layers of which count as float ones.
        unwritten: Outputs of delegates that no operator computes.
        dynamic: Whether it takes batches smaller than its largest.
    """

    outside: Counter[str] = field(default_factory=Counter)
    unwritten: int = 0
    dynamic: bool = False


def read(path: str | os.PathLike[str]) -> PteFile:
    """Read a file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no program, or damaged.
    """
    data = Path(path).read_bytes()
    try:
        program, named = parse_program(data)
        graphs = list(delegates(program, named))
    except (ValueError, KeyError, IndexError, AssertionError) as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error
    file = PteFile()
    for delegate in graphs:
        _add(file, delegate.graph, delegate.constants)
    for plan in program.execution_plan:
        names = [f"{o.name}.{o.overload}" if o.overload else o.name for o in plan.operators]
        for chain in plan.chains:
            for step in chain.instructions:
                if isinstance(step.instr_args, KernelCall):
                    file.outside[names[step.instr_args.op_index]] += 1
    file.float_layers += sum(n for name, n in file.outside.items() if is_layer(name))
    plan = program.execution_plan[0]
    for index in plan.inputs[:1]:
        tensor = plan.values[index].val
        if isinstance(tensor, TensorValue):
            file.batch = int(tensor.sizes[0]) if tensor.sizes else 1
            file.dynamic = int(tensor.shape_dynamism) == DYNAMIC
    return file


def weights(path: str | os.PathLike[str]) -> Iterator[Weight]:
    """The int8 weights of a file, for `zaq_plugin.archive`.

    Raises:
        FileNotFoundError, ValueError: see `read`.
    """
    yield from read(path).archived()


def is_layer(operator: str) -> bool:
    """Whether an operator outside the delegates is a convolution or a linear layer."""
    return any(part in operator for part in HEAVY)


def _add(file: PteFile, graph: dict[str, Any], constants: list[bytes]) -> None:
    values = {v["id_out"]: (v, q) for v, q in map(_value, graph["xvalues"])}
    written = set(graph["input_ids"])
    for node in graph["xnodes"]:
        kind, fields = node["xnode_union_type"], node["xnode_union"]
        file.operators[kind] += 1
        written.update(v for k, v in fields.items() if k.startswith("output") and k.endswith("id"))
        if kind not in LAYERS:
            continue
        (source, _), (weight, grid) = values[fields["input1_id"]], values[fields["filter_id"]]
        if weight["datatype"] in INT8 and source["datatype"] in INT8:
            file.integer_layers += 1
            file.weights.append(_weight(weight, grid, constants))
        else:
            file.float_layers += 1
    file.unwritten += len(set(graph["output_ids"]) - written)
    for node in graph["xnodes"]:
        fields = node["xnode_union"]
        if node["xnode_union_type"] == "XNNConvert" and fields["output_id"] in graph["output_ids"]:
            _, grid = values[fields["input_id"]]
            file.output_step = max(file.output_step, float(grid.get("scale") or 0))


def _value(entry: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    value = entry["xvalue_union"]
    if entry["xvalue_union_type"] == "XNNQuantizedTensorValue":
        return value["tensor_value"], value["quant_params"]
    return value, {}


def _weight(
    value: dict[str, Any], grid: dict[str, Any], constants: list[bytes]
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    shape = tuple(int(d) for d in value["dims"])
    data = constants[value["constant_buffer_idx"]]
    if len(data) < math.prod(shape):
        raise ValueError(f"a weight of shape {shape} has {len(data)} bytes.")
    codes = np.frombuffer(data, np.int8, math.prod(shape)).reshape(shape)
    place = int(grid.get("scale_buffer_idx", -1))
    if place >= 0:
        return codes, np.frombuffer(constants[place], np.float32, int(grid["num_scales"]))
    return codes, np.atleast_1d(np.asarray(grid["scale"], np.float32))


# ---- Running it ----------------------------------------------------------------------------------


def runner(path: str | os.PathLike[str]) -> Run:
    """What runs a batch through a file.

    Raises:
        ValueError: ExecuTorch cannot load it, or, when it runs, run it.
    """
    try:
        method = Runtime.get().load_program(Path(path)).load_method("forward")
    except RuntimeError as error:
        raise ValueError(f"ExecuTorch cannot load it: {_first(error)}") from error
    assert method is not None

    def run(inputs: tuple[Tensor, ...]) -> list[Tensor]:
        try:
            outputs = method.execute([x.contiguous() for x in inputs])
        except RuntimeError as error:
            raise ValueError(f"ExecuTorch cannot run it: {_first(error)}") from error
        return [torch.as_tensor(x).clone() for x in outputs]

    return run


def _first(error: RuntimeError) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def one_thread() -> None:
    """Let XNNPACK compute in one thread from now on, in all files of this process."""
    reset_threads(1)
