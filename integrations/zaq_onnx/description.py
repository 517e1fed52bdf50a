"""What `export` tells about a model: its layers, in records and in the file's manifest."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from onnx import ModelProto

from zaq_onnx.files import FORMAT, digest, put_manifest
from zaq_onnx.graph import Graph
from zaq_onnx.naming import LAYERS
from zaq_onnx.notes import Note, note_for
from zaq_onnx.refusals import computed_weights
from zaq_onnx.weights import Weights
from zaq_plugin import __version__
from zaq_plugin.report import LayerRecord


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
