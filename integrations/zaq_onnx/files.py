"""Reading and writing model files; what is damaged or foreign is refused with a clear sentence."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto

from zaq_onnx.constants import check_tensor
from zaq_onnx.graph import metadata_of, opset_of, set_metadata
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
