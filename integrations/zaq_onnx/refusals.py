"""Models that would be exported wrongly, refused by name before anything is written."""

from __future__ import annotations

import ast
import re
from typing import Any

import torch
from onnx import NodeProto
from torch.export import ExportedProgram
from torch.fx import Node

from zaq_onnx._compat import SCOPES
from zaq_onnx.graph import Graph, attribute, make
from zaq_onnx.naming import LAYERS
from zaq_onnx.runtimes import ort_session

_aten = torch.ops.aten
_DIVISORS = {_aten.avg_pool2d.default: 6, _aten.avg_pool3d.default: 6}
"""Operators that may divide by another number than a window's size, and which argument says so."""


def refuse_program(program: ExportedProgram) -> None:
    """Raise for operators that the ONNX exporter writes as others.

    Raises:
        ValueError: average pooling with ``divisor_override``, which it leaves out.
    """
    for node in program.graph.nodes:
        place = _DIVISORS.get(node.target)
        if place is None:
            continue
        divisor = (
            node.args[place] if len(node.args) > place else node.kwargs.get("divisor_override")
        )
        if divisor is not None:
            raise ValueError(
                f"{_place(node)!r}: average pooling with divisor_override={divisor} has no "
                "counterpart in ONNX. Leave divisor_override out, and multiply the pooled tensor "
                "by the quotient."
            )


def _place(node: Node) -> str:
    """The innermost module around a node of an exported program; else the node's name."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return (str(stack[-1][0]) if stack else "") or node.name


def untranslated(program: ExportedProgram, error: BaseException) -> ValueError:
    """What to raise where the ONNX exporter gives up: the operator, and the module around it."""
    texts: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        texts.append(str(cause))
        cause = cause.__cause__
    named = re.search(
        r"OpOverload\(op='(\w+)\.(\w+)'|target=torch\.ops\.(\w+)\.(\w+)", "\n".join(texts)
    )
    if named is None:
        first = next((t.strip().splitlines()[0] for t in reversed(texts) if t.strip()), "")
        return ValueError(f"torch.onnx cannot write this model: {first}")
    name = ".".join(g for g in named.groups() if g)
    places = [_place(n) for n in program.graph.nodes if str(n.target).startswith(f"{name}.")]
    where = f", which {places[0]!r} calls," if places else ""
    return ValueError(
        f"torch.onnx has no counterpart of {name}{where} among ONNX's operators. Write that part "
        "of the model with other operators."
    )


def refuse_operators(graph: Graph) -> None:
    """Raise for operators that a runtime computes wrongly; names are read from the metadata.

    Raises:
        ValueError: resizing with antialiasing, which OpenVINO leaves out.
    """
    for node in graph.of_type("Resize"):
        if attribute(node, "antialias", 0):
            raise ValueError(
                f"{_scope(node)!r}: OpenVINO resizes without antialiasing, silently, where the "
                "model asks for antialias=True. Resize with antialias=False, or outside of the "
                "model."
            )


def _scope(node: NodeProto) -> str:
    """The innermost module around a node that the exporter wrote; else the node's output."""
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            names = [n for n in ast.literal_eval(entry.value)[:-1] if n]
            if names:
                return str(names[-1])
    return str(node.output[0])


def computed_weights(graph: Graph) -> dict[str, tuple[int, ...]]:
    """Weights of layers that are computed from constants whenever a model runs, and their shapes.

    Runtimes compute these once, in float: an integer weight behind which something is computed
    (standardised, normalised) is no integer weight.
    """
    producers = graph.producers()
    is_constant: dict[str, bool] = {}

    def constant(name: str) -> bool:
        if name not in is_constant:
            is_constant[name] = False
            node = producers.get(name)
            is_constant[name] = name in graph.constants or (
                node is not None and all(constant(n) for n in node.input if n)
            )
        return is_constant[name]

    names = []
    for layer in graph.of_type(*LAYERS):
        name = layer.input[1]
        source = producers.get(name)
        if source is not None and source.op_type != "DequantizeLinear" and constant(name):
            names.append(name)
    if not names:
        return {}
    values: list[Any] = _run(graph, list(dict.fromkeys(names)))
    return dict(zip(dict.fromkeys(names), (v.shape for v in values), strict=True))


def _run(graph: Graph, names: list[str]) -> list[Any]:
    """Values of tensors that need no input."""
    alone = Graph(graph.to_model())
    alone.outputs = [f"{name}.value" for name in names]
    alone.nodes += [make("Identity", [n], o) for n, o in zip(names, alone.outputs, strict=True)]
    model = alone.to_model()
    del model.graph.input[:], model.graph.output[:]
    for name in alone.outputs:
        model.graph.output.add().name = name
    values: list[Any] = ort_session(model, optimize=False).run(None, {})
    return values
