"""The routes: what the README tells users to call, with a note of how far each call got."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.fuzz.grammar import SPECS, Recipe

Inputs = tuple[Tensor, ...]
Call = Callable[..., Any]


@dataclass
class Run:
    """A route at work: what it is given, how far it got, what it found.

    Attributes:
        stage: The call that is being made, for the report of an error.
        calibrated: Whether calibration has begun: from here on a refusal comes too late.
        figures: Models to compare with the float model or each other: name to (function, kind),
            where kind is "float" (must be equal), "quantized", or a name (must be close to it).
    """

    recipe: Recipe
    model: nn.Module
    batches: list[Inputs]
    stage: str = "start"
    calibrated: bool = False

    def given(self) -> list[Any]:
        """The batches as users give them: a tensor, or a tuple of several."""
        return [b[0] if len(b) == 1 else b for b in self.batches]


@dataclass
class Made:
    """A model that a route made: to be compared with another, by default the float model.

    Attributes:
        name: What it is.
        call: The model.
        kind: "float" (must be the same function), "quantized", or "same" (as the one before).
    """

    name: str
    call: Call
    kind: str


class HostError(Exception):
    """The host alone, without this package, does not take the network."""


def simulated(run: Run) -> list[Made]:
    """Fold, simulate, calibrate, correct."""
    return [Made("student", _student(run), "quantized")]


def equalised(run: Run) -> list[Made]:
    """Fold, equalise: the same function."""
    from zaq_plugin.ptq import fold_batch_norm
    from zaq_plugin.ptq.equalise import equalise

    example = tuple(x.clone() for x in run.batches[0])
    run.stage = "equalise"
    folded = fold_batch_norm(run.model, example)
    return [Made("equalised", equalise(folded, example).model, "float")]


def _student(run: Run) -> nn.Module:
    from zaq_plugin.ptq import calibrate, correct_bias, fold_batch_norm, simulate

    example = tuple(x.clone() for x in run.batches[0])
    run.stage = "fold_batch_norm"
    folded = fold_batch_norm(run.model, example)
    run.stage = "simulate"
    example = tuple(x.clone() for x in run.batches[0])
    student = simulate(folded, SPECS[run.recipe.spec], 8, example_inputs=example)
    run.stage, run.calibrated = "calibrate", True
    batches: list[Any] = run.given()
    if len(run.batches[0]) == 2:
        batches = [{"x": x, "second": second} for x, second in run.batches]
    calibrate(student, batches)
    run.stage = "correct_bias"
    correct_bias(student, batches)
    return student


def fx(run: Run, qat: bool = False) -> list[Made]:
    """zaq_fx: prepare, calibrate, convert."""
    import zaq_fx

    run.stage = "prepare"
    example = tuple(x.clone() for x in run.batches[0])
    prepared = zaq_fx.prepare(
        run.model, example, SPECS[run.recipe.spec], 7, input_bits=7, other_bits=7, qat=qat
    )
    twin = zaq_fx.twin(prepared)
    run.stage, run.calibrated = "calibrate", True
    zaq_fx.calibrate(prepared, run.given())
    run.stage = "convert"
    stages = [Made("prepared, quantizers off", twin, "float")]
    if qat:
        stages.append(Made("prepared", copy.deepcopy(prepared).eval(), "quantized"))
    return [*stages, Made("converted", zaq_fx.convert(prepared), "quantized")]


def fx_qat(run: Run) -> list[Made]:
    """zaq_fx, prepared for training."""
    return fx(run, qat=True)


def pt2e(run: Run, qat: bool = False) -> list[Made]:
    """Export, prepare with PWLQQuantizer, calibrate, convert."""
    from torchao.quantization.pt2e.quantize_pt2e import (
        convert_pt2e,
        prepare_pt2e,
        prepare_qat_pt2e,
    )

    import zaq_pt2e

    run.stage = "torch.export"
    example = tuple(x.clone() for x in run.batches[0])
    batch = torch.export.Dim("batch")
    try:
        program = torch.export.export(
            run.model, example, dynamic_shapes=tuple({0: batch} for _ in example)
        )
        module = program.module()
        module(*(x.clone() for x in example))
    except Exception as error:
        raise HostError(f"torch.export: {type(error).__name__}: {error}") from error
    run.stage = "prepare"
    quantizer = zaq_pt2e.PWLQQuantizer(
        SPECS[run.recipe.spec], 7, input_bits=7, other_bits=7, qat=qat
    )
    prepared = (prepare_qat_pt2e if qat else prepare_pt2e)(module, quantizer)
    run.stage = "twin"
    twin = zaq_pt2e.twin(prepared)
    run.stage, run.calibrated = "calibrate", True
    zaq_pt2e.calibrate(prepared, run.given())
    run.stage = "convert"
    stages = [Made("prepared, quantizers off", twin, "float")]
    if qat:
        stages.append(Made("prepared", copy.deepcopy(prepared), "quantized"))
    return [*stages, Made("converted", convert_pt2e(prepared), "quantized")]


def pt2e_qat(run: Run) -> list[Made]:
    """PT2E, prepared for training."""
    return pt2e(run, qat=True)


def nncf(run: Run) -> list[Made]:
    """zaq_nncf: quantize, strip."""
    import zaq_nncf

    run.stage = "quantize"
    batches: list[Any] = run.given()
    if len(run.batches[0]) == 2:
        batches = [{"x": x, "second": second} for x, second in run.batches]
    quantized = zaq_nncf.quantize(run.model, batches, SPECS[run.recipe.spec])
    run.stage, run.calibrated = "strip", True
    stages = [Made("quantized", quantized, "quantized")]
    return [*stages, Made("stripped", zaq_nncf.strip(quantized), "same")]


def onnx(run: Run) -> list[Made]:
    """simulate, export, ONNX Runtime; every other network with all tensors in integers."""
    import onnxruntime

    import zaq_onnx

    student = _student(run)
    run.stage = "export"
    run.calibrated = False  # a student is calibrated before anybody asks for a file
    whole = run.recipe.seed % 2 == 0
    example = tuple(x.clone() for x in run.batches[0])
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        calibration = run.given() if whole else None
        zaq_onnx.export(student, example, path, calibration=calibration, reduce_range=True)
        run.stage, run.calibrated = "onnxruntime", True
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]

    def call(*inputs: Tensor) -> list[Tensor]:
        feeds = dict(zip(names, (x.contiguous().numpy() for x in inputs), strict=True))
        return [torch.from_numpy(y) for y in session.run(None, feeds)]

    return [Made("student", student, "quantized"), Made("ONNX Runtime", call, "quantized")]


ROUTES: dict[str, Callable[[Run], list[Made]]] = {
    "simulated": simulated,
    "equalised": equalised,
    "fx": fx,
    "fx_qat": fx_qat,
    "pt2e": pt2e,
    "pt2e_qat": pt2e_qat,
    "nncf": nncf,
    "onnx": onnx,
}
# Bits of weights and activations that the bound of a route is computed with.
BITS = {"uniform7": 7, "pwlq4": 4}
