"""What a file says of itself: its layers, in records, in its manifest and by `info`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto

from zaq_onnx.files import FORMAT, Path_, digest, put_manifest, read
from zaq_onnx.graph import Graph
from zaq_onnx.naming import LAYERS, Note, note_for
from zaq_onnx.refusals import computed_weights
from zaq_onnx.weights import Weights
from zaq_plugin import __version__
from zaq_plugin.report import LayerRecord

# ---- Records and manifest ------------------------------------------------------------------------


def records_of(
    graph: Graph, weights: Weights, notes: dict[str, Note], reasons: dict[str, str]
) -> list[LayerRecord]:
    """One record per convolution, linear layer and matrix product, with what is known of it.

    Args:
        graph: Of the file.
        weights: Its weights.
        notes: What the model knows of its layers.
        reasons: Why some weights are float, by their names.
    """
    producers, computed = graph.producers(), computed_weights(graph)
    records: dict[str, LayerRecord] = {}
    for node in graph.of_type(*LAYERS):
        source = producers.get(node.input[1])
        stored = weights.named.get(source.input[0]) if source is not None else None
        if stored is None:
            value, read = graph.array(node.input[1]), node.input[1]
            name, reason = read.removesuffix(".weight"), "its weight is float"
            if name == read:  # no parameter: the exporter may have folded what computes it
                name = graph.layers.get(node.output[0], name)
                reason = "its weight is computed from constants, in float"
            reason = reasons.get(read, reason)
            if value is not None and value.ndim >= 2:
                records.setdefault(name, LayerRecord(name, node.op_type, value.size, False, reason))
            elif read in computed:
                size = math.prod(computed[read])
                records.setdefault(name, LayerRecord(name, node.op_type, size, False, reason))
            continue
        name = stored.name.removesuffix(".weight")
        coded = weights.coded(stored.name)
        bits = 8 if coded is None else coded.width
        facts: dict[str, Any] = {
            "spec": f"int8, at most {2**bits} levels a channel",
            "mac_bits": 8,
            "stored_bits": bits,
            **note_for(notes, name),
        }
        records.setdefault(
            name,
            LayerRecord(name, node.op_type, stored.integers.size, True, kernel="int8", **facts),
        )
    return list(records.values())


def describe(
    model: ModelProto,
    source: str,
    records: list[LayerRecord],
    opset: int,
    changes: dict[str, int],
) -> None:
    """Write a model's manifest: where it comes from, what was changed, its layers, its digest."""
    formats: list[list[Any]] = []
    layers: list[list[Any]] = []
    for r in records:
        facts = [r.kind, r.quantized, r.spec, r.mac_bits, r.stored_bits]
        if facts not in formats:
            formats.append(facts)
        layers.append([r.name, r.numel, formats.index(facts)])
    put_manifest(
        model,
        {
            "format": FORMAT,
            "zaq_plugin": __version__,
            "torch": str(torch.__version__),
            "source": source,
            "opset": opset,
            **changes,
            "formats": formats,
            "layers": layers,
            "digest": digest(model),
        },
    )


def float_bytes(graph: Graph) -> int:
    """Bytes of the constants if integer weights were float32."""
    total = 0
    for name in graph.constants:
        value = graph.array(name)
        assert value is not None
        total += 4 * value.size if value.dtype in (np.int8, np.float32) else value.nbytes
    return max(1, math.ceil(total))


def layers_of(manifest: dict[str, Any]) -> dict[str, LayerRecord]:
    """The layers that a manifest tells of, by name.

    Raises:
        ValueError: it is damaged.
    """
    layers = {}
    try:
        for name, numel, number in manifest["layers"]:
            kind, quantized, spec, mac_bits, stored_bits = manifest["formats"][number]
            layers[name] = LayerRecord(
                name, kind, numel, quantized, spec=spec, mac_bits=mac_bits, stored_bits=stored_bits
            )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"the list of layers in the metadata is damaged: {error}.") from error
    return layers


# ---- The file, layer by layer --------------------------------------------------------------------

_RIGHT = 3, 5
"""Columns with numbers."""


@dataclass(frozen=True)
class LayerInfo:
    """One layer of a file.

    Attributes:
        name: The layer.
        kind: Its operator.
        shape: Of its weight.
        mac_bits: Width of the multiplier that the format needs; 8 where nothing says otherwise.
        stored_bits: Width of a weight in the file.
        bytes: Of the weight in the file: codes and codebooks, or integers, or floats.
        format: The format's label.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    mac_bits: float
    stored_bits: float
    bytes: int
    format: str

    def cells(self) -> tuple[str, ...]:
        """The layer as a row of text."""
        return (
            self.name,
            self.kind,
            "x".join(map(str, self.shape)),
            f"{self.mac_bits:g}",
            f"{self.stored_bits:g}",
            f"{self.bytes:,}",
            self.format,
        )


@dataclass(frozen=True)
class FileInfo:
    """A file from `zaq_onnx.export`.

    Attributes:
        path: The file.
        bytes: Its size.
        int8_bytes: Size of the same model with int8 weights.
        float_bytes: Bytes of the same weights and biases in float32.
        manifest: What `export` wrote about it.
        layers: Its layers.
    """

    path: str
    bytes: int
    int8_bytes: int
    float_bytes: int
    manifest: dict[str, Any]
    layers: list[LayerInfo]

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("Layer", "Kind", "Weight", "MAC bits", "Stored bits", "Bytes", "Format")
        ]
        rows += [layer.cells() for layer in self.layers]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if _RIGHT[0] <= i <= _RIGHT[1] else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        facts = self.manifest
        head = f"{facts['source']} model, zaq_plugin {facts['zaq_plugin']}, opset {facts['opset']}"
        total = (
            f"{self.path}: {self.bytes:,} bytes; {self.bytes / self.int8_bytes:.3f} of int8 "
            f"({self.int8_bytes:,}), {self.bytes / self.float_bytes:.3f} of float32 "
            f"({self.float_bytes:,})."
        )
        return "\n".join([*lines, head, total])


def info(path: Path_) -> FileInfo:
    """What a file holds.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged (see `load`), or was not written by `export`.
    """
    contents = read(path)
    manifest, plain = contents.manifest, contents.plain
    if manifest is None:
        raise ValueError(f"{path}: not written by zaq_onnx.export (its metadata says nothing).")
    try:
        by_name = layers_of(manifest)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    weights = contents.weights.named
    # The layers are the plain model's: unfolding multiplies matrices, too.
    graph = Graph(plain)
    producers = graph.producers()
    layers = []
    for node in graph.of_type(*LAYERS):
        source = producers.get(node.input[1])
        weight = weights.get(source.input[0]) if source is not None else None
        if weight is None:
            value = graph.array(node.input[1])
            if value is not None and value.ndim >= 2:
                name = node.input[1].removesuffix(".weight")
                shape = tuple(value.shape)
                layers.append(LayerInfo(name, node.op_type, shape, 32, 32, value.nbytes, "float32"))
            continue
        name = weight.name.removesuffix(".weight")
        entry = by_name.get(name)
        stored = (entry.stored_bits if entry and weight.packed else None) or 8
        label = (entry.spec if entry else None) or "int8"
        if not weight.packed and label != "int8":
            label += ", kept as int8"
        layers.append(
            LayerInfo(
                name,
                node.op_type,
                tuple(weight.integers.shape),
                (entry.mac_bits if entry else None) or 8,
                stored,
                weight.stored,
                label,
            )
        )
    floats = sum(
        4 * value.size if value.dtype in ("int8", "float32") else value.nbytes
        for value in map(Graph(plain).array, [t.name for t in plain.graph.initializer])
        if value is not None
    )
    size = Path(path).stat().st_size
    return FileInfo(str(path), size, plain.ByteSize(), floats, manifest, layers)
