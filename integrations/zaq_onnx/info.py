"""`info`: what a file holds, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zaq_onnx.contents import read
from zaq_onnx.description import layers_of
from zaq_onnx.files import Path_
from zaq_onnx.graph import Graph
from zaq_onnx.naming import LAYERS

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
