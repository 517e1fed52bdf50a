"""What would become of a model: its layers, their sizes, which hosts take it, what stays float."""

from __future__ import annotations

import contextlib
import io
import logging
import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zaq_plugin.errors import in_short
from zaq_plugin.layers import channel_axis
from zaq_plugin.ptq import audit, fold_batch_norm, simulate
from zaq_plugin.ptq.plan import stored_size
from zaq_plugin.pwlq import PWLQSpec, QuantSpec, UniformSpec
from zaq_plugin.student.host import Assignment, find_host, host_names
from zaq_timm.looking.seconds import measure_costs, predict_seconds
from zaq_timm.zoo.models import load
from zaq_timm.zoo.references import Reference
from zaq_timm.zoo.settings import Settings

STORED_BITS = (4, 5, 8)
"""Widths that sizes are predicted at."""


@dataclass(frozen=True)
class LayerSketch:
    """One layer of a model.

    Attributes:
        name, kind: as in an audit.
        shape: of its weight; empty where no module owns it.
        numel: number of weights.
        reason: why it would stay float, or a remark; None for nothing to say.
        quantized: whether simulation would put it on a grid.
        bytes: stored bits to bytes, its levels counted; float layers have four a weight.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    numel: int
    quantized: bool
    reason: str | None
    bytes: dict[int, int]


@dataclass
class Sketch:
    """A model before anything is quantized.

    Attributes:
        name: what it was called.
        weights: where its weights come from.
        inputs: shape of its images, without the batch; empty if nobody says.
        layers: every weight of two dimensions and more.
        other_bytes: what is left float besides: biases, BatchNorms that stay, 4 bytes each.
        hosts: host to how many layers it would quantize and what it says of the others.
        seconds: method to what it would take here, see `zaq_timm.looking.seconds`.
        notes: what was assumed of its images.
    """

    name: str
    weights: str
    inputs: tuple[int, ...]
    layers: list[LayerSketch]
    other_bytes: int
    hosts: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def float_bytes(self) -> int:
        """Size in float32."""
        return 4 * sum(layer.numel for layer in self.layers) + self.other_bytes

    def size(self, stored_bits: int) -> int:
        """Predicted size at a width."""
        return sum(layer.bytes[stored_bits] for layer in self.layers) + self.other_bytes

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        sizes = {str(bits): self.size(bits) for bits in STORED_BITS}
        return asdict(self) | {"float_bytes": self.float_bytes, "sizes": sizes}


def spec_at(stored_bits: int) -> QuantSpec:
    """The format that is predicted at so many stored bits: PWLQ, or uniform from 8 on."""
    if stored_bits >= 8:
        return UniformSpec(stored_bits, "symmetric", "mse")
    return PWLQSpec(bits=stored_bits - 1)


def sketch(
    reference: Reference, settings: Settings, hosts: bool = True, seconds: bool = True
) -> Sketch:
    """What would become of a model.

    Args:
        reference: the model; `zaq_timm.zoo.references` makes one of what users type.
        settings: how it is loaded: ``pretrained``, ``num_classes``, ``input_size``.
        hosts: also ask every host that is installed, which takes seconds each.
        seconds: also time the model's steps, and predict what methods take.

    Raises:
        LeftOut: the model cannot be had, or takes no images.
    """
    loaded = load(reference, settings)
    example = torch.zeros(2, *loaded.inputs.shape)
    folded = fold_batch_norm(loaded.model, (example,))
    begin = time.perf_counter()
    student = simulate(folded, PWLQSpec(bits=4), 8, example_inputs=(example,))
    levels = time.perf_counter() - begin
    modules = dict(folded.named_modules())
    layers = []
    for record in audit(student):
        weight = getattr(modules.get(record.name), "weight", None)
        shape, channels = _shape(weight, modules.get(record.name))
        sizes = {
            bits: stored_size(record.numel, channels, spec_at(bits))
            if record.quantized
            else 4 * record.numel
            for bits in STORED_BITS
        }
        layers.append(
            LayerSketch(
                record.name,
                record.kind,
                shape,
                record.numel,
                record.quantized,
                record.reason,
                sizes,
            )
        )
    weights = sum(layer.numel for layer in layers)
    rest = 4 * (sum(p.numel() for p in folded.parameters()) - weights)
    outline = Sketch(reference.name, loaded.weights, loaded.inputs.shape, layers, rest)
    outline.notes = loaded.notes
    if seconds:
        costs = measure_costs(loaded.model, student, loaded.inputs, levels)
        outline.seconds = predict_seconds(costs, settings)
    for name in host_names() if hosts else ():
        if name != "simulated":
            outline.hosts[name] = ask(name, loaded.model, example)
    return outline


def _shape(weight: Any, module: nn.Module | None) -> tuple[tuple[int, ...], int]:
    """A weight's shape, and its output channels: one grid each."""
    if not isinstance(weight, Tensor) or module is None:
        return (), 1
    return tuple(weight.shape), int(weight.shape[channel_axis(module)])


def ask(name: str, model: nn.Module, example: Tensor) -> dict[str, Any]:
    """Whether a host takes a model at 4 MAC bits and 8-bit activations.

    Returns:
        ``takes``; and either ``quantized``, ``layers`` and ``float`` (layer to reason), or
        ``reason``.
    """
    assignment = Assignment(PWLQSpec(bits=4), 8)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # tools talk about other things than the answer
    try:
        host = find_host(name)
        reason = host.why_not(assignment)
        if reason is not None:
            return {"takes": False, "reason": reason}
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # and NNCF draws a bar where --json prints
            records = host.audit(host.prepare(model, (example,), assignment).model)
    except Exception as error:  # whatever a tool raises is its answer
        return {"takes": False, "reason": in_short(error)}
    finally:
        logging.disable(before)
    skipped = {record.name: record.reason for record in records.skipped}
    return {
        "takes": True,
        "layers": len(records),
        "quantized": len(records.quantized),
        "float": skipped,
    }


def sketch_onnx(path: Path) -> Sketch:
    """The same of an ONNX file: no host takes it, as they take torch modules.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no ONNX model, or a damaged one.
        ImportError: onnx is missing.
    """
    import zaq_onnx
    from zaq_onnx.stored import float_weights

    layers = []
    for name, (kind, value) in float_weights(path).items():
        channels = value.shape[-1] if kind == "MatMul" else value.shape[0]
        sizes = {bits: stored_size(value.size, channels, spec_at(bits)) for bits in STORED_BITS}
        layers.append(LayerSketch(name, kind, tuple(value.shape), value.size, True, None, sizes))
    try:
        file = zaq_onnx.info(path)
    except ValueError:
        source = "an ONNX file of somebody else"
    else:
        source = f"zaq_onnx.export: {file.bytes:,} bytes, {file.int8_bytes:,} as int8"
    return Sketch(str(path), source, (), layers, 0)
