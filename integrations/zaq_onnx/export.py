"""`export`: a quantized model as one ONNX file of int8 weights, packed to PWLQ's size."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx
import torch
from onnx import ModelProto
from torch import nn
from torch.export import ExportedProgram

from zaq_onnx.activations import keep_grids_apart
from zaq_onnx.completion import complete
from zaq_onnx.equivalence import require_same
from zaq_onnx.files import OPSETS, Path_, write
from zaq_onnx.files import check as check_file
from zaq_onnx.graph import Graph
from zaq_onnx.info import describe, float_bytes, records_of
from zaq_onnx.naming import LAYERS, Note, name_weights, notes_of, scopes, shorten
from zaq_onnx.packing import pack_model
from zaq_onnx.passes import INTEGERS, Pass, run
from zaq_onnx.portable import IR_VERSIONS, make_portable, name_batch
from zaq_onnx.reduction import reduce_weights
from zaq_onnx.refusals import refuse_operators, refuse_program, untranslated
from zaq_onnx.sources import batch_shapes, exportable, program_of
from zaq_onnx.targets import check_target, depthwise_to_float
from zaq_onnx.weights import weights_of
from zaq_plugin.report import Audit


@dataclass(frozen=True)
class Exported:
    """What `export` wrote.

    Attributes:
        path: The file.
        bytes: Its size.
        int8_bytes: Size of the same model with int8 weights.
        float_bytes: Size of its weights and biases as float32.
        source: What kind of model was exported.
        layers: One record per convolution, linear layer and matrix product.
    """

    path: str
    bytes: int
    int8_bytes: int
    float_bytes: int
    source: str
    layers: Audit

    def __str__(self) -> str:
        saved = f"{self.bytes / self.int8_bytes:.2f} of int8, {self.bytes / self.float_bytes:.3f}"
        return (
            f"{self.path}: {self.bytes / 1000:,.1f} kB ({saved} of float32), "
            f"{len(self.layers.quantized)} of {len(self.layers)} layers in int8"
        )


def export(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    path: Path_,
    *,
    pack: bool = True,
    portable: bool = True,
    target: str = "any",
    opset: int | None = None,
    dynamic_batch: bool = True,
    dynamic_shapes: Any = None,
    calibration: Iterable[Any] | None = None,
    reduce_range: bool = False,
    audit: Audit | None = None,
    check: bool = True,
) -> Exported:
    """Write a quantized model as ONNX that stock runtimes run on int8 kernels.

    Weights are int8 with a scale per output channel, bit for bit those of the model (but for
    ``reduce_range``); activations are quantized and dequantized where the model does it. With
    ``pack`` the int8 weights are stored as codes and codebooks, unfolded by standard operators when
    the model is loaded.

    Args:
        model: From ``convert_fx`` or ``convert_to_reference_fx``, ``convert_pt2e``,
            ``zaq_nncf.strip``, or ``zaq_plugin.ptq.simulate`` (calibrated). It is not changed.
        example_inputs: What it is called with.
        path: The file to write.
        pack: Pack the weights; see `zaq_onnx.pack`.
        portable: Write what every runtime reads, see `zaq_onnx.pack` and docs/onnx_files.md; False
            gives the smallest file, for ONNX Runtime and OpenVINO.
        target: Where the file is to run: ``"any"``, or ``"wasm"`` for onnxruntime-web, which has no
            fast int8 depthwise convolution: depthwise layers multiply in float there, by the
            model's levels, which the file holds as float32. Their records say so.
        opset: Version of ONNX's operators: 19 or newer, which is the default, or 21 for a file that
            is not portable.
        dynamic_batch: Let the first dimension of the inputs vary. Give at least two samples.
        dynamic_shapes: Instead, as in ``torch.export``.
        calibration: Batches (a tensor, a tuple of inputs, or inputs by name) that give 8-bit
            ranges to tensors between layers that the model leaves in float, so that all of it runs
            in integers. The model then rounds where it did not before; None exports it as it is.
        reduce_range: Make weights smaller where processors without VNNI would saturate, silently:
            their int8 kernels add two products in 16 bits, in ONNX Runtime and in OpenVINO. Weights
            of this package's formats do not (but for ``overflow="allowed"``), and stay. Those of
            others are rounded anew, each channel to the coarser grid that changes it least; see
            `zaq_onnx.reduction`. `verify` says whether the processor at hand saturates.
        audit: What was quantized and how, for models that do not carry it themselves.
        check: Compare the file under ONNX Runtime with the model on the example inputs; see
            `zaq_onnx.equivalence`, and `verify` for more.

    Returns:
        Sizes and layers.

    Raises:
        TypeError, ValueError: a model that is not quantized, not converted, or cannot be
            exported; a layer between quantized activations with a float weight, which ONNX Runtime
            would quantize silently; an opset or a target that does not exist; a file that computes
            something else, which is taken away again.
    """
    opset = OPSETS[portable] if opset is None else opset
    _check(example_inputs, opset, portable)
    check_target(target)
    graph, source, notes = graph_of(
        model,
        example_inputs,
        opset=opset,
        dynamic_shapes=dynamic_shapes or batch_shapes(example_inputs, dynamic_batch),
        calibration=calibration,
        reduce_range=reduce_range,
        audit=audit,
    )
    floats = depthwise_to_float(graph) if target == "wasm" else {}
    refuse_float_weights(graph)
    weights = weights_of(graph)
    records = records_of(graph, weights, notes, floats)
    if portable:
        make_portable(graph)
    shorten(graph)
    plain = graph.to_model()
    name_batch(plain)
    plain.ir_version = IR_VERSIONS[min(opset, max(IR_VERSIONS))]
    changes = {
        "completed": graph.completed,
        "reduced": graph.reduced,
        "float_depthwise": len(floats),
    }
    describe(plain, source, records, opset, changes)
    written = plain
    if pack:
        packed, done = pack_model(plain, portable=portable, weights=weights)
        written = packed if done else plain
    check_file(written, os.fspath(path))
    size = write(written, path)
    if check:
        try:
            require_same(
                model, path, plain, example_inputs, changed=bool(graph.completed or graph.reduced)
            )
        except ValueError:
            os.unlink(path)
            raise
    return Exported(
        os.fspath(path),
        size,
        plain.ByteSize(),
        float_bytes(graph),
        source,
        Audit(records).require_any(),
    )


def graph_of(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    *,
    opset: int = OPSETS[True],
    dynamic_shapes: Any = None,
    calibration: Iterable[Any] | None = None,
    reduce_range: bool = False,
    audit: Audit | None = None,
) -> tuple[Graph, str, dict[str, Note]]:
    """The int8 graph of a model, what kind the model was, and what it knows about its layers.

    Arguments and errors are those of `export`.
    """
    notes = notes_of(model, audit)
    ready, source = exportable(model)
    program = program_of(ready, example_inputs, dynamic_shapes)
    refuse_program(program)
    graph = Graph(_to_onnx(program, opset))
    refuse_operators(graph)
    layers = scopes(graph)
    passes: list[Pass] = [*INTEGERS]
    if reduce_range:
        passes.append(reduce_weights)
    if calibration is not None:
        passes += [partial(complete, batches=calibration), *INTEGERS]
    run(graph, [*passes, keep_grids_apart])
    graph.layers = _named_by_weight(graph, layers, notes.weights)
    name_weights(graph, graph.layers)
    return graph, source, notes.records


def _check(example_inputs: object, opset: object, portable: bool) -> None:
    if not isinstance(example_inputs, tuple) or not example_inputs:
        raise TypeError(
            f"example_inputs must be a tuple of inputs, such as (images,); got "
            f"{type(example_inputs).__name__}."
        )
    newest, oldest = onnx.defs.onnx_opset_version(), OPSETS[portable]
    if isinstance(opset, bool) or not isinstance(opset, int):
        raise TypeError(f"opset must be an int from {oldest} to {newest}; got {opset!r}.")
    if not oldest <= opset <= newest:
        why = "of which every runtime has all operators" if portable else "with codes of 4 bits"
        raise ValueError(
            f"opset must be from {oldest} (the first {why}) to {newest} (the newest that onnx "
            f"{onnx.__version__} knows); got {opset}."
        )


@contextmanager
def _quiet() -> Any:
    """The exporter logs and warns about its own affairs."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _to_onnx(program: ExportedProgram, opset: int) -> ModelProto:
    with _quiet():
        try:
            exported = torch.onnx.export(
                program, (), dynamo=True, opset_version=opset, verbose=False, optimize=True
            )
        except torch.onnx.OnnxExporterError as error:
            raise untranslated(program, error) from error
    if exported is None:
        raise ValueError("torch.onnx.export returned nothing.")
    model = exported.model_proto
    version = max(o.version for o in model.opset_import if o.domain == "")
    if version != opset:
        raise ValueError(f"torch.onnx wrote opset {version} where {opset} was asked for.")
    del model.metadata_props[:]
    return model


def _named_by_weight(
    graph: Graph, layers: dict[str, str], weights: dict[str, str]
) -> dict[str, str]:
    """Layer names by output: what the weight is known as wins over the module's scope."""
    producers = graph.producers()
    names = dict(layers)
    for node in graph.of_type(*LAYERS):
        source = producers.get(node.input[1])
        if source is None or source.op_type != "DequantizeLinear":
            continue
        stem = source.input[0].removesuffix(".t").removesuffix(".int8")
        if stem in weights:
            names[node.output[0]] = weights[stem]
    return names


def refuse_float_weights(graph: Graph) -> None:
    """Refuse layers that ONNX Runtime would quantize by itself.

    Raises:
        ValueError: there are some.
    """
    wrong = [name for name, _ in float_weights(graph)]
    if wrong:
        raise ValueError(
            f"{wrong[0]!r} and {len(wrong) - 1} more layers have float weights between quantized "
            "activations; ONNX Runtime would round these to 8 bits of its own, silently. Quantize "
            "the layers' weights, or leave their activations in float."
        )


def float_weights(graph: Graph) -> list[tuple[str, str]]:
    """(layer, weight) of layers with quantized inputs and outputs but a float constant weight."""
    producers, consumers = graph.producers(), graph.consumers()
    pairs = []
    for node in graph.of_type(*LAYERS):
        x = producers.get(node.input[0])
        weight = graph.array(node.input[1])
        if weight is None or weight.ndim < 2 or x is None or x.op_type != "DequantizeLinear":
            continue
        if any(c.op_type == "QuantizeLinear" for c in consumers[node.output[0]]):
            pairs.append((node.output[0], node.input[1]))
    return pairs
