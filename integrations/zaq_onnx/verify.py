"""`verify`: does a file hold the model's levels, and do the runtimes compute with them?"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor, nn

from zaq_onnx.adapters.registry import ADAPTERS
from zaq_onnx.adapters.trials import Outcome, Trial, measure, time_float, try_apart
from zaq_onnx.comparison import Run, compare_weights, largest, moves
from zaq_onnx.export import float_weights
from zaq_onnx.files import Contents, Path_, contents_of, manifest_of, parse, read, unpack_model
from zaq_onnx.graph import Array, Graph
from zaq_onnx.inspection import (
    float_layers,
    float_operations,
    integer_layers,
    output_steps,
    strangers,
    why_float,
)
from zaq_onnx.reduction import saturable
from zaq_onnx.runtimes import (
    ADVICE,
    WARNING,
    as_array,
    noise_for,
    optimized,
    ort_session,
    run_ort,
    saturates,
)
from zaq_onnx.targets import REASON
from zaq_onnx.verdict import (
    ABSENT,
    FAILED,
    LOADED,
    REFUSED,
    RIGHT,
    WRONG,
    RuntimeReport,
    Verification,
)

RUNTIMES = ("onnxruntime", "openvino")
"""Those that run in this process, unless they are to be isolated."""

FLOAT_ROUNDING = 25500
"""A file without grids is right to this part of its outputs' range: a hundredth of a step."""

SAME_KERNELS = {
    "onnxruntime": "onnxruntime",
    "onnxruntime-node": "onnxruntime",
    "openvino": "openvino",
    "openvino-convert": "openvino",
}
"""Runtimes of which it is known whether they saturate, by the one that is asked."""


def verify(
    path: Path_,
    model: nn.Module | None = None,
    inputs: Sequence[Any] | Tensor | None = None,
    *,
    runtimes: Sequence[str] = RUNTIMES,
    threads: int = 1,
    isolated: bool = False,
    float_file: Path_ | None = None,
    seconds: float = 0.0,
    timeout: float = 300.0,
    node_modules: Path_ | None = None,
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
        inputs: What to run on, at least with a model: a tensor, or a tuple of inputs. Without any,
            ``onnxruntime`` and ``openvino`` only load the file, and others run it on noise.
        runtimes: Names of `zaq_onnx.ADAPTERS`. One that is not installed is listed as such.
        threads: Threads that the runtimes may use.
        isolated: Try ``onnxruntime`` and ``openvino`` in processes of their own, too, as all others
            always are: a crash or a hang is then a problem that is reported.
        float_file: The same network as a float ONNX file, to compare latencies with.
        seconds: For how long each file is run to be timed; 0: not at all.
        timeout: Seconds after which a process is ended.
        node_modules: Folder of npm packages, for the runtimes under Node; else NODE_PATH.

    Returns:
        The verdict; ``verify(...).require()`` raises if it is not OK.

    Raises:
        FileNotFoundError: there is no such file, or no such float file.
        ValueError: an unknown runtime; a model without inputs.
    """
    unknown = [name for name in runtimes if name not in ADAPTERS]
    if unknown:
        raise ValueError(f"unknown runtime {unknown[0]!r}; known are {', '.join(ADAPTERS)}.")
    if model is not None and inputs is None:
        raise ValueError("verify: a model needs inputs to be compared on.")
    beside = None if float_file is None else os.fspath(float_file)
    if beside is not None and not os.path.isfile(beside):
        raise FileNotFoundError(f"there is no float file {beside!r}.")
    folder = None if node_modules is None else os.fspath(node_modules)
    trial = Trial(threads, seconds, beside, timeout, folder)
    verdict = Verification(os.fspath(path))
    contents = _contents(verdict, path)
    if contents is None:
        return verdict
    raw, plain = contents.model, contents.plain
    graph = Graph(plain)
    verdict.layers = len(contents.weights)
    verdict.packed = sum(weight.packed for weight in contents.weights)
    if not contents.weights:
        verdict.problems.append("no layer has an int8 weight: nothing in this file is quantized.")
    for layer, weight in float_weights(graph):
        verdict.problems.append(
            f"{layer}: its weight {weight!r} is float between quantized activations, so that ONNX "
            "Runtime requantizes it silently."
        )
    manifest = contents.manifest or {}
    completed, reduced = (int(manifest.get(key, 0)) for key in ("completed", "reduced"))
    verdict.saturable = len(saturable(graph))
    if verdict.saturable and any(_saturates(name) for name in runtimes):
        verdict.remarks.append(f"{verdict.saturable} {WARNING}.")
    arguments = (inputs,) if isinstance(inputs, Tensor | np.ndarray) else tuple(inputs or ())
    if not arguments and (isolated or any(name not in RUNTIMES for name in runtimes)):
        arguments = tuple(noise_for(plain))
        verdict.remarks.append("no inputs were given: it was run on noise.")
    if model is not None:
        verdict.problems += compare_weights(graph, model, arguments, bool(reduced))
    outputs: list[Array] = []
    if arguments:
        own = _operators(plain, threads)
        reference = own if model is None or completed or reduced else _torch(model)
        outputs = reference(arguments)
        verdict.tolerance = max(
            max(output_steps(graph), default=0.0), moves(graph, reference, arguments)
        )
        if not contents.weights:
            verdict.tolerance = max(verdict.tolerance, _span(outputs) / FLOAT_ROUNDING)
        changes = [
            *(["tensors that were float in the model have 8-bit ranges"] if completed else []),
            *([f"the weights of {reduced} layers have coarser grids"] if reduced else []),
        ]
        if model is not None and changes:
            apart = largest(_torch(model)(arguments), outputs)
            what = " and ".join(changes)
            verdict.remarks.append(f"{what} here, which moves its output by up to {apart:.3g}.")
    arrays = [as_array(x) for x in arguments]
    for name in runtimes:
        verdict.runtimes.append(_try(verdict, name, raw, arrays, outputs, trial, isolated))
    missing = [report.name for report in verdict.runtimes if report.state == ABSENT]
    if missing and len(missing) == len(verdict.runtimes):
        verdict.problems.append(f"nothing has run it: {', '.join(missing)} not installed.")
    return verdict


def _contents(verdict: Verification, path: Path_) -> Contents | None:
    """What the file holds; None (and a problem) if it is damaged."""
    try:
        return read(path)
    except ValueError as error:
        verdict.problems.append(str(error).removeprefix(f"{os.fspath(path)}: "))
    try:
        contents = contents_of(parse(path))
    except ValueError:
        return None
    return contents if "digest" in verdict.problems[-1] or "opset" in verdict.problems[-1] else None


def _operators(plain: ModelProto, threads: int) -> Run:
    """The file's own operators, one by one."""
    session = ort_session(plain, optimize=False, threads=threads)
    return lambda arguments: run_ort(session, arguments)


def _torch(model: nn.Module) -> Run:
    @torch.no_grad()
    def run(arguments: tuple[Any, ...]) -> list[Array]:
        output = model(*(torch.as_tensor(x) for x in arguments))
        leaves = torch.utils._pytree.tree_leaves(output)
        return [leaf.detach().numpy() for leaf in leaves if isinstance(leaf, Tensor)]

    return run


def _measure(
    verdict: Verification, name: str, outputs: list[Array], expected: list[Array]
) -> tuple[float, float]:
    """Largest difference and agreement; a problem if they are too large."""
    if not expected:
        return 0.0, 1.0
    if [o.shape for o in outputs] != [o.shape for o in expected]:
        shapes = [o.shape for o in outputs], [o.shape for o in expected]
        verdict.problems.append(f"{name}: outputs of shapes {shapes[0]}; expected {shapes[1]}.")
        return float("inf"), 0.0
    error = largest(outputs, expected)
    same = 1.0
    if expected[0].ndim >= 2 and expected[0].shape[1] > 1:
        same = float((outputs[0].argmax(1) == expected[0].argmax(1)).mean())
    if not error <= verdict.tolerance * (1 + 1e-6) + 1e-6:
        own = verdict.saturable and _saturates(name)
        advice = "; " + ADVICE if own else ""
        verdict.problems.append(
            f"{name}: an output differs by {error:.3g} from the reference, more than "
            f"{verdict.tolerance:.3g}{advice}."
        )
    return error, same


def _span(outputs: list[Array]) -> float:
    return max((float(np.ptp(one)) for one in outputs if one.size), default=0.0)


def _saturates(name: str) -> bool:
    """Of runtimes whose kernels are not asked, nothing is known."""
    return name in SAME_KERNELS and saturates(SAME_KERNELS[name])


def _try(
    verdict: Verification,
    name: str,
    model: ModelProto,
    inputs: list[Array],
    expected: list[Array],
    trial: Trial,
    isolated: bool,
) -> RuntimeReport:
    """One runtime; what is wrong becomes a problem."""
    adapter = ADAPTERS[name](trial.node_modules)
    version = adapter.installed()
    if version is None:
        return RuntimeReport(name, state=ABSENT, message=adapter.install)
    if isolated or name not in RUNTIMES:
        outcome = try_apart(ADAPTERS[name], verdict.path, inputs, trial)
    else:
        outcome = Outcome()
        try:
            measure(adapter, verdict.path, inputs, trial, outcome)
            time_float(ADAPTERS[name](trial.node_modules), inputs, trial, outcome)
        except (ValueError, RuntimeError) as error:
            outcome.message = " ".join(str(error).split())[:400]
    report = RuntimeReport(
        name,
        outcome.load_seconds,
        version=version,
        message=outcome.message,
        kernels=outcome.kernels or Counter(),
        milliseconds=outcome.milliseconds,
        float_milliseconds=outcome.float_milliseconds,
    )
    if outcome.message:
        report.state = REFUSED if outcome.stage == "load" else FAILED
        verdict.problems.append(f"{name}: {report.state}: {outcome.message}")
        return report
    if outcome.untimed:
        verdict.remarks.append(f"{name}: answered, but was not timed: {outcome.untimed}.")
    report.integer_layers, report.float_layers = outcome.layers or (0, 0)
    before = len(verdict.problems)
    report.error, report.agreement = _measure(verdict, name, outcome.outputs, expected)
    span = _span(expected)
    report.steps = 255 * report.error / span if span else 0.0
    report.state = WRONG if len(verdict.problems) > before else RIGHT if expected else LOADED
    if name == "onnxruntime":
        _look_inside(verdict, report, model)
    return report


def _look_inside(verdict: Verification, report: RuntimeReport, model: ModelProto) -> None:
    """What ONNX Runtime's optimized graph tells."""
    graph = Graph(optimized(verdict.path))
    for name in strangers(graph, model):
        verdict.problems.append(
            f"onnxruntime: {name} computes with a weight that is not in the file: the runtime has "
            "requantized a float weight."
        )
    heavy = float_layers(graph)
    meant = int((manifest_of(model) or {}).get("float_depthwise", 0))
    if meant:
        verdict.remarks.append(f"{meant} depthwise layers are float: {REASON}.")
    if len(heavy) > meant:
        count, completed = len(heavy) - meant, bool((manifest_of(model) or {}).get("completed"))
        why = why_float(Graph(unpack_model(model)), count, completed)
        verdict.remarks.append(f"{count} layers run in float under ONNX Runtime: {why}.")
    verdict.float_operations = float_operations(graph)
    report.integer_layers, report.float_layers = len(integer_layers(graph)), len(heavy)
