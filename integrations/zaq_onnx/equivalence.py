"""Proof of an export: the file computes what the model computes, on the example inputs."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from onnx import ModelProto, ValueInfoProto
from torch import Tensor, fx, nn
from torch._C import DisableTorchFunction

from zaq_onnx.files import Path_
from zaq_onnx.graph import Graph
from zaq_onnx.naming import LAYERS, notes_of, weight_behind
from zaq_onnx.reduction import saturable
from zaq_onnx.runtimes import WARNING, as_array, ort_session, saturates
from zaq_onnx.sources import is_simulated
from zaq_onnx.weights import weights_of
from zaq_plugin.student.batches import Call
from zaq_plugin.student.hand_over import (
    KERNELS_DB,
    Side,
    difference,
    noise_of,
    refusal,
    student_side,
)
from zaq_plugin.student.modes import evaluating
from zaq_plugin.student.proof import run
from zaq_plugin.student.recording import Passes, graph_passes, module_passes

CHANGED_DB = 10.0
"""Demanded of a file that rounds where the model does not, or has coarser grids."""
_ADVICE = {
    True: "The exporter wrote that part wrongly: leave it out by an override (None), or write it "
    "in another way",
    False: "ONNX Runtime runs that part wrongly: leave it out by an override (None), or write it "
    "in another way",
}


class Saturation(UserWarning):
    """A file computes something else on this processor; ignore it by this category."""


def require_same(
    model: nn.Module,
    path: Path_,
    plain: ModelProto,
    example_inputs: tuple[Any, ...],
    *,
    changed: bool,
) -> None:
    """Compare a file under ONNX Runtime with the model that it was made of.

    Where they differ, the file's own operators, one by one, tell whose fault it is. What saturates
    on this processor is a warning.

    Args:
        model: That was exported.
        path: The file.
        plain: The same, not packed.
        example_inputs: What both are run on.
        changed: Whether the file has grids that the model does not have.

    Raises:
        ValueError: they are too far apart; the text names the first layer that differs.
    """
    if not all(isinstance(x, Tensor) for x in example_inputs):
        return  # nested inputs: the runtime knows the leaves by names of its own
    call: Call = (example_inputs, {})
    source = _model_side(model)
    target = _file_side("the file under ONNX Runtime", path, plain, optimize=True)
    noise = (lambda: noise_of(model, call)) if is_simulated(model) else None
    least = CHANGED_DB if changed else KERNELS_DB
    gap = difference(source, target, call, least, noise)
    if gap is None:
        return
    own = _file_side("the file", path, plain, optimize=False)
    written = difference(source, own, call, least, noise)
    if written is not None:
        raise refusal(source, own, written, _ADVICE[True])
    if saturates("onnxruntime") and saturable(Graph(plain)):
        text = f"{WARNING} (outputs: {gap.ratio:.1f} dB, {gap.place})"
        warnings.warn(text, Saturation, stacklevel=3)
        return
    raise refusal(source, target, gap, _ADVICE[False])


def _model_side(model: nn.Module) -> Side:
    name = "the model"
    if is_simulated(model):
        side = student_side(name, model)
        return Side(name, side.run, lambda call: _rectified(side.passes(call)))

    def outputs(call: Call) -> Any:
        with evaluating(model):
            return run(model, call)

    def passes(call: Call) -> Passes:
        with evaluating(model):
            nodes = _layer_nodes(model) if isinstance(model, fx.GraphModule) else {}
            if isinstance(model, fx.GraphModule) and nodes:
                return _rectified(graph_passes(model, nodes, call))
            modules = {name: module for name, module in model.named_modules() if name}
            return _rectified(module_passes(model, modules, call, DisableTorchFunction))

    return Side(name, outputs, passes)


def _rectified(passes: Passes) -> Passes:
    """What layers make, without what is negative: some modules hold their ReLU."""
    return {name: (x, y.clamp(min=0)) for name, (x, y) in passes.items()}


def _layer_nodes(model: fx.GraphModule) -> dict[fx.Node, str]:
    """Layers of an exported graph, by the weight that they read."""
    nodes, names = {}, notes_of(model).weights
    for node in model.graph.nodes:
        weight = weight_behind(node)
        if weight is not None and str(weight.target) in names:
            nodes[node] = names[str(weight.target)]
    return nodes


def _file_side(name: str, path: Path_, plain: ModelProto, *, optimize: bool) -> Side:
    def outputs(call: Call) -> Any:
        return _run(ort_session(path, optimize=optimize), call)

    def passes(call: Call) -> Passes:
        tapped, taps = _with_taps(plain)
        values = _run(ort_session(tapped, optimize=optimize), call)[len(plain.graph.output) :]
        pairs = zip(values[::2], values[1::2], strict=True)
        return _rectified(dict(zip(taps, pairs, strict=True)))

    return Side(name, outputs, passes)


def _run(session: Any, call: Call) -> list[Tensor]:
    names = [entry.name for entry in session.get_inputs()]
    feeds = dict(zip(names, map(as_array, call[0]), strict=True))
    return [torch.as_tensor(value) for value in session.run(None, feeds)]


def _with_taps(plain: ModelProto) -> tuple[ModelProto, list[str]]:
    """A copy with each layer's input and output among its outputs, and the layers' names."""
    model = copy.deepcopy(plain)
    graph = Graph(model)
    names = {output: weight.name for output, weight in weights_of(graph).by_output.items()}
    consumers = graph.consumers()
    taps: list[str] = []
    present = {entry.name for entry in model.graph.output}
    for node in graph.of_type(*LAYERS):
        name = names.get(node.input[1], "").removesuffix(".weight")
        made_by, behind = node.output[0], consumers[node.output[0]]
        if len(behind) == 1 and behind[0].op_type == "Add":
            made_by = behind[0].output[0]  # with its bias
        ends = node.input[0], made_by
        if not name or name in taps or present & set(ends):
            continue
        taps.append(name)
        model.graph.output.extend(ValueInfoProto(name=end) for end in ends)
        present.update(ends)
    return model, taps
