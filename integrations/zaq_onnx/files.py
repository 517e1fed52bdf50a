"""Reading and writing model files, and what they hold: checked, weights found and unfolded.

What is damaged or foreign is refused with a clear sentence.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto

from zaq_onnx.constants import check_tensor
from zaq_onnx.graph import Graph, metadata_of, opset_of, set_metadata
from zaq_onnx.weights import Weights, weights_of
from zaq_plugin.files import write_whole

KEY = "zaq"
"""Key of our JSON text in a model's metadata."""

FORMAT = "zaq_onnx/1"
MINIMUM_OPSET = 13
"""The first with a scale per channel."""

OPSETS = {True: 19, False: 21}
"""The oldest that is written, by whether the file is portable; see docs/onnx_files.md."""

LARGEST = 2**31 - 1
Path_ = str | os.PathLike[str]


def serialize(model: ModelProto) -> bytes:
    """The bytes of a model's file; the same model gives the same bytes.

    Raises:
        ValueError: beyond 2 GiB, which the format cannot hold in one file.
    """
    if model.ByteSize() > LARGEST:
        raise ValueError("the model is larger than 2 GiB, more than one ONNX file can hold.")
    return model.SerializeToString(deterministic=True)


def digest(model: ModelProto) -> str:
    """SHA-256 of a model without its metadata."""
    bare = ModelProto()
    bare.CopyFrom(model)
    del bare.metadata_props[:]
    return hashlib.sha256(serialize(bare)).hexdigest()


def write(model: ModelProto, path: Path_) -> int:
    """Write a model; the number of its bytes."""
    data = serialize(model)
    write_whole(path, data)
    return len(data)


def parse(path: Path_) -> ModelProto:
    """A model file as it is, its constants' sizes checked.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is empty, truncated, no ONNX model, or a constant does not fit its shape.
    """
    name = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"{name}: there is no such file; zaq_onnx.export(student, (images,), {name!r}) writes "
            "one."
        )
    data = Path(path).read_bytes()
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's errors share no public base class
        raise ValueError(
            f"{name}: not an ONNX model, or damaged: its {len(data)} bytes cannot be parsed "
            f"({error})."
        ) from error
    if not model.graph.node or not model.opset_import:
        raise ValueError(f"{name}: not an ONNX model, or truncated: it holds no graph.")
    try:
        for tensor in model.graph.initializer:
            check_tensor(tensor)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return model


def manifest_of(model: ModelProto) -> dict[str, Any] | None:
    """What `export` wrote about the model, or None for somebody else's file.

    Raises:
        ValueError: the text is damaged, or of another version.
    """
    text = metadata_of(model).get(KEY)
    if text is None:
        return None
    try:
        manifest = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"the metadata {KEY!r} is damaged: {error}.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(
            f"the metadata {KEY!r} is not of format {FORMAT!r}; look for a newer zaq_plugin."
        )
    return manifest


def put_manifest(model: ModelProto, manifest: dict[str, Any]) -> None:
    """Write about a model into its metadata."""
    set_metadata(model, {KEY: json.dumps(manifest, separators=(",", ":"), sort_keys=True)})


def require_opset(model: ModelProto, name: str) -> None:
    """Raise ValueError if a model's operator set has no int8 weights yet, or is unknown to onnx."""
    version = opset_of(model)
    if version < MINIMUM_OPSET:
        raise ValueError(
            f"{name}: opset {version}, but a scale per channel needs opset {MINIMUM_OPSET} or "
            "newer. Export it with zaq_onnx.export."
        )
    newest = onnx.defs.onnx_opset_version()
    if version > newest:
        raise ValueError(
            f"{name}: opset {version} is newer than onnx {onnx.__version__} knows ({newest}). "
            "Install a newer onnx."
        )


def check(model: ModelProto, name: str) -> None:
    """Run ONNX's own checker with shape inference.

    Raises:
        ValueError: what it found.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker has a dozen kinds of its own
        text = str(error).strip().splitlines()[0]
        raise ValueError(f"{name}: the ONNX checker refuses the model: {text}") from error


# ---- What a file holds ---------------------------------------------------------------------------


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
