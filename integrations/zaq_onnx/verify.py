"""`verify`: does a file hold the model's levels, and do the runtimes compute with them?"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor, nn

from zaq_onnx.export import float_weights, graph_of
from zaq_onnx.files import Path_, manifest_of, parse
from zaq_onnx.graph import Array, Graph
from zaq_onnx.inspecting import (
    float_layers,
    float_operations,
    integer_layers,
    output_steps,
    strangers,
)
from zaq_onnx.packing import load, unpack_model, weights_of
from zaq_onnx.reducing import saturable
from zaq_onnx.runtimes import (
    kernels,
    openvino_compiled,
    openvino_kernels,
    optimized,
    ort_session,
    run_openvino,
    run_ort,
)
from zaq_onnx.saturation import ADVICE, WARNING, saturates
from zaq_onnx.tolerance import Run, largest, moves
from zaq_onnx.verdict import RuntimeReport, Verification

RUNTIMES = ("onnxruntime", "openvino")
_INTEGER = (" i8", " u8")


def verify(
    path: Path_,
    model: nn.Module | None = None,
    inputs: Sequence[Any] | Tensor | None = None,
    *,
    runtimes: Sequence[str] = RUNTIMES,
    threads: int = 1,
) -> Verification:
    """Check a file, compare its weights with the model's, and run it.

    The outputs may differ from the reference by one step of the last activations, or by what the
    reference itself moves when its input is off by one step of its own grid, at random: roundings
    that flip early in a deep network move its output, in whatever runtime. An input of which
    something is computed before it is put on a grid may be off by a 255th of its range.

    Args:
        path: A file from `export`, packed or not.
        model: The model that was exported. Without it, and for files that were given ranges by
            ``calibration`` or ``reduce_range``, the reference is the file's own operators, run one
            by one.
        inputs: What to run on, at least with a model: a tensor, or a tuple of inputs.
        runtimes: ``onnxruntime`` and ``openvino``, or one of them.
        threads: Threads that the runtimes may use.

    Returns:
        The verdict; ``verify(...).require()`` raises if it is not OK.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: OpenVINO is asked for, and not installed.
        ValueError: an unknown runtime; a model without inputs.
    """
    unknown = [name for name in runtimes if name not in RUNTIMES]
    if unknown:
        raise ValueError(f"unknown runtime {unknown[0]!r}; known are {', '.join(RUNTIMES)}.")
    if model is not None and inputs is None:
        raise ValueError("verify: a model needs inputs to be compared on.")
    found = Verification(os.fspath(path))
    raw = _foreign(found, path)
    if raw is None:
        return found
    plain = unpack_model(raw)
    graph = Graph(plain)
    weights = list(weights_of(graph))
    found.layers = len(weights)
    found.packed = sum(weight.packed for weight in weights_of(Graph(raw)))
    if not weights:
        found.problems.append("no layer has an int8 weight: nothing in this file is quantized.")
    for layer, weight in float_weights(graph):
        found.problems.append(
            f"{layer}: its weight {weight!r} is float between quantized activations, so that ONNX "
            "Runtime requantizes it silently."
        )
    manifest = manifest_of(raw) or {}
    completed, reduced = (int(manifest.get(key, 0)) for key in ("completed", "reduced"))
    found.saturable = len(saturable(graph))
    if found.saturable and any(saturates(name) for name in runtimes):
        found.remarks.append(f"{found.saturable} {WARNING}.")
    given = (inputs,) if isinstance(inputs, Tensor | np.ndarray) else tuple(inputs or ())
    if model is not None:
        _compare_weights(found, graph, model, given, bool(reduced))
    outputs: list[Array] = []
    if given:
        own = _operators(plain, threads)
        reference = own if model is None or completed or reduced else _torch(model)
        outputs = reference(given)
        found.tolerance = max(max(output_steps(graph), default=0.0), moves(graph, reference, given))
        changes = [
            *(["tensors that were float in the model have 8-bit ranges"] if completed else []),
            *([f"the weights of {reduced} layers have coarser grids"] if reduced else []),
        ]
        if model is not None and changes:
            apart = largest(_torch(model)(given), outputs)
            what = " and ".join(changes)
            found.remarks.append(f"{what} here, which moves its output by up to {apart:.3g}.")
    checks: dict[str, Callable[..., None]] = {"onnxruntime": _ort, "openvino": _openvino}
    for name in runtimes:
        try:
            checks[name](found, path, raw, given, outputs, threads)
        except ValueError as error:
            found.problems.append(str(error))
    return found


def _foreign(found: Verification, path: Path_) -> ModelProto | None:
    """The model; None (and a problem) if the file is damaged."""
    try:
        return load(path)
    except ValueError as error:
        found.problems.append(str(error).removeprefix(f"{os.fspath(path)}: "))
    try:
        model = parse(path)
        unpack_model(model)
    except ValueError:
        return None
    return model if "digest" in found.problems[-1] or "opset" in found.problems[-1] else None


def _compare_weights(
    found: Verification, graph: Graph, model: nn.Module, inputs: tuple[Any, ...], reduced: bool
) -> None:
    expected, _, _ = graph_of(model, inputs, reduce_range=reduced)
    there = _by_name(graph)
    for name, (integers, scale) in _by_name(expected).items():
        if name not in there:
            found.problems.append(f"the file has no weight {name!r}, which the model has.")
        elif not np.array_equal(there[name][0], integers):
            wrong = (
                int((there[name][0] != integers).sum())
                if (there[name][0].shape == integers.shape)
                else integers.size
            )
            found.problems.append(f"{wrong} integers of {name!r} differ from the model's.")
        elif not np.array_equal(there[name][1], scale):
            found.problems.append(f"the scales of {name!r} differ from the model's.")


def _by_name(graph: Graph) -> dict[str, tuple[Array, Array]]:
    made = {}
    for weight in weights_of(graph):
        scale = graph.array(weight.node.input[1])
        assert scale is not None
        made[weight.name] = weight.integers, scale
    return made


def _operators(plain: ModelProto, threads: int) -> Run:
    """The file's own operators, one by one."""
    session = ort_session(plain, optimize=False, threads=threads)
    return lambda given: run_ort(session, given)


def _torch(model: nn.Module) -> Run:
    @torch.no_grad()
    def run(given: tuple[Any, ...]) -> list[Array]:
        made = model(*(torch.as_tensor(x) for x in given))
        leaves = torch.utils._pytree.tree_leaves(made)
        return [leaf.detach().numpy() for leaf in leaves if isinstance(leaf, Tensor)]

    return run


def _measure(
    found: Verification, name: str, outputs: list[Array], expected: list[Array]
) -> tuple[float, float]:
    """Largest difference and agreement; a problem if they are too large."""
    if not expected:
        return 0.0, 1.0
    if [o.shape for o in outputs] != [o.shape for o in expected]:
        shapes = [o.shape for o in outputs], [o.shape for o in expected]
        found.problems.append(f"{name}: outputs of shapes {shapes[0]}; expected {shapes[1]}.")
        return float("inf"), 0.0
    error = largest(outputs, expected)
    same = 1.0
    if expected[0].ndim >= 2 and expected[0].shape[1] > 1:
        same = float((outputs[0].argmax(1) == expected[0].argmax(1)).mean())
    if not error <= found.tolerance * (1 + 1e-6) + 1e-6:
        advice = "; " + ADVICE if found.saturable and saturates(name) else ""
        found.problems.append(
            f"{name}: an output differs by {error:.3g} from the reference, more than "
            f"{found.tolerance:.3g}{advice}."
        )
    return error, same


def _ort(
    found: Verification,
    path: Path_,
    model: ModelProto,
    inputs: tuple[Any, ...],
    expected: list[Array],
    threads: int,
) -> None:
    begin = time.perf_counter()
    session = ort_session(path, threads=threads)
    seconds = time.perf_counter() - begin
    outputs = run_ort(session, inputs) if inputs else []
    error, same = _measure(found, "onnxruntime", outputs, expected)
    inside = optimized(path)
    graph = Graph(inside)
    for name in strangers(graph, model):
        found.problems.append(
            f"onnxruntime: {name} computes with a weight that is not in the file: the runtime has "
            "requantized a float weight."
        )
    heavy = float_layers(graph)
    if heavy:
        found.remarks.append(
            f"{len(heavy)} layers run in float under ONNX Runtime, because their input or output "
            "is not quantized; export(..., calibration=batches) gives it a range."
        )
    found.float_operations = float_operations(graph)
    found.runtimes.append(
        RuntimeReport(
            "onnxruntime",
            seconds,
            error,
            same,
            kernels(inside),
            len(integer_layers(graph)),
            len(heavy),
        )
    )


def _openvino(
    found: Verification,
    path: Path_,
    model: ModelProto,
    inputs: tuple[Any, ...],
    expected: list[Array],
    threads: int,
) -> None:
    begin = time.perf_counter()
    compiled = openvino_compiled(path, threads)
    seconds = time.perf_counter() - begin
    outputs = run_openvino(compiled, inputs) if inputs else []
    error, same = _measure(found, "openvino", outputs, expected)
    counts = openvino_kernels(compiled)
    layers = {k: n for k, n in counts.items() if k.split()[0] in _OPENVINO_LAYERS}
    whole = sum(n for k, n in layers.items() if k.endswith(_INTEGER))
    found.runtimes.append(
        RuntimeReport("openvino", seconds, error, same, counts, whole, sum(layers.values()) - whole)
    )


_OPENVINO_LAYERS = ("Convolution", "FullyConnected", "Deconvolution")
