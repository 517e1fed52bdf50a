"""What a model file holds: read once, checked, its weights found and unfolded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from onnx import ModelProto

from zaq_onnx.files import Path_, check, digest, manifest_of, parse, require_opset
from zaq_onnx.graph import Graph
from zaq_onnx.weights import Weights, weights_of


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes:
        model: As it is in the file.
        plain: The same with int8 weights.
        weights: Those of the file, packed or not.
        manifest: What `zaq_onnx.export` wrote about it; None in somebody else's file.
    """

    model: ModelProto
    plain: ModelProto
    weights: Weights
    manifest: dict[str, Any] | None


def contents_of(model: ModelProto) -> Contents:
    """What a model holds that was parsed already.

    Raises:
        ValueError: a packed weight or the manifest is damaged.
    """
    manifest = manifest_of(model)
    weights = weights_of(Graph(model))
    return Contents(model, unpack_model(model, weights), weights, manifest)


def read(path: Path_, *, checked: bool = True) -> Contents:
    """A model file that was checked: structure, operators, codes, and that nothing was changed.

    Args:
        path: The file.
        checked: Also run ONNX's checker.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated, damaged, of an unknown opset, or not what `export` wrote.
    """
    name = os.fspath(path)
    model = parse(path)
    require_opset(model, name)
    try:
        contents = contents_of(model)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(
            f"{name}: damaged: a node has not the inputs or attributes of its operator "
            f"({type(error).__name__}: {error}). Write the file again with zaq_onnx.export."
        ) from error
    if checked:
        check(model, name)
    manifest = contents.manifest
    if manifest is not None and digest(contents.plain) != manifest.get("digest"):
        raise ValueError(
            f"{name}: the model is not the one that was exported: its digest differs. The file is "
            "damaged, or another tool has changed it."
        )
    return contents


def load(path: Path_, *, checked: bool = True) -> ModelProto:
    """A model file that was checked; arguments and errors are those of `read`."""
    return read(path, checked=checked).model


def unpack_model(model: ModelProto, weights: Weights | None = None) -> ModelProto:
    """A copy with int8 weights; see `zaq_onnx.unpack`.

    Args:
        model: Packed or not.
        weights: Its weights, where somebody has found them already.

    Raises:
        ValueError: a packed weight is damaged.
    """
    graph = Graph(copy_of(model))
    for weight in weights_of(graph) if weights is None else weights:
        if weight.packed and weight.name not in graph.constants:
            graph.nodes = [n for n in graph.nodes if weight.name not in n.output]
            graph.add_constant(weight.name, weight.integers)
    return graph.to_model()


def copy_of(model: ModelProto) -> ModelProto:
    """A model that may be changed."""
    clone = ModelProto()
    clone.CopyFrom(model)
    return clone
