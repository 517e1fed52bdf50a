"""From whatever a user has to the int8 graph that a device's tool writes."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from zaq_plugin.errors import did_you_mean
from zaq_plugin.report import Audit
from zaq_plugin.strategies import Request
from zaq_pt2e._compat import is_watcher
from zaq_pt2e.device.grids import complete
from zaq_pt2e.device.signed import is_converted, refuse, to_int8
from zaq_pt2e.packing import OPERATORS, unpack

FIXED = {"weight_bits", "activation_bits", "example_inputs", "images", "host"}
"""Fields of `Request` that a device's other arguments say."""


def check_options(options: dict[str, Any], host: str) -> None:
    """Raise TypeError for an option that `Request` has not, or that devices say themselves."""
    names = sorted({field.name for field in fields(Request)} - FIXED)
    for name in options:
        if name not in names:
            hint = did_you_mean(name, [*names, "stored_bits"], " Did you mean {}?")
            raise TypeError(
                f"{host}: there is no option {name!r}.{hint} Known are {', '.join(names)}. Files "
                "for devices have activations of 8 bits, always."
            )


def int8_graph(model: nn.Module, calibration: Iterable[Any] | None, who: str) -> GraphModule:
    """The graph that a converted model is on a device; a copy.

    Args:
        model: From ``convert_pt2e``, also packed.
        calibration: Batches that give ranges to outputs of layers that have none.
        who: The tool that asks, for errors.

    Raises:
        TypeError: a model that is no graph.
        ValueError: one that was not converted, or has what the tool would compute wrongly.
    """
    if not isinstance(model, GraphModule):
        raise TypeError(
            f"{who}: expected a graph from convert_pt2e; got {type(model).__name__}. A float model "
            "is quantized first."
        )
    if any(is_watcher(module) for module in model.modules()):
        raise ValueError(
            f"{who}: this model is prepared, not converted. Calibrate it, and pass what "
            "convert_pt2e makes of it."
        )
    packed = any(node.target is OPERATORS[1] for node in model.graph.nodes)
    graph = unpack(model) if packed else copy.deepcopy(model)
    refuse(graph, who)
    complete(graph, calibration, who)
    return to_int8(graph, who)


def holds_quantization(model: GraphModule) -> bool:
    """Whether a graph was prepared or converted, by whomever."""
    packed = any(node.target is OPERATORS[1] for node in model.graph.nodes)
    return packed or is_converted(model) or any(is_watcher(m) for m in model.modules())


def require_example(example_inputs: object, who: str) -> None:
    """Raise TypeError unless there is a tuple that begins with a tensor."""
    if (
        not isinstance(example_inputs, tuple)
        or not example_inputs
        or not isinstance(example_inputs[0], Tensor)
    ):
        raise TypeError(
            f"{who}: example_inputs must be a tuple of tensors, such as (images,); got "
            f"{type(example_inputs).__name__}."
        )


def sized(example_inputs: tuple[Any, ...], batch: int) -> tuple[Any, ...]:
    """The example with so many samples, repeated or cut."""
    return tuple(
        torch.cat([x] * -(-batch // len(x)))[:batch].contiguous() if _has_batch(x) else x
        for x in example_inputs
    )


def _has_batch(x: object) -> bool:
    return isinstance(x, Tensor) and x.dim() > 1 and len(x) > 0


def check_batch(batch: object, who: str) -> int:
    """The batch, if it is a size.

    Raises:
        TypeError, ValueError: it is none.
    """
    if isinstance(batch, bool) or not isinstance(batch, int):
        raise TypeError(f"{who}: batch must be a whole number; got {batch!r}.")
    if batch < 1:
        raise ValueError(f"{who}: batch must be at least 1; got {batch}.")
    return batch


def images_of(batches: Iterable[Tensor], who: str) -> Tensor:
    """Calibration batches as one tensor of images."""
    if isinstance(batches, Tensor):
        return batches
    samples: list[Any] = list(batches)
    images = [b[0] if isinstance(b, tuple | list) else b for b in samples]
    if not images or not all(isinstance(b, Tensor) for b in images):
        raise TypeError(f"{who}: batches must be tensors of images (n, C, H, W), at least one.")
    return torch.cat(images)


@dataclass(frozen=True)
class DeviceExport:
    """What a device's ``export`` wrote.

    Attributes:
        path: The file.
        bytes: Its size. Its weights are int8, whatever their stored bits: kernels have no others.
        zipped_bytes: Its size as a store sends it (deflate).
        batch: The largest batch that it takes.
        layers: One record per layer.
        operators: The tool's, in the file.
        model: The int8 graph that the file holds: what ``verify`` compares it with.
    """

    path: str
    bytes: int
    zipped_bytes: int
    batch: int
    layers: Audit
    operators: Counter[str]
    model: GraphModule

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.bytes / 1000:,.1f} kB, {self.zipped_bytes / 1000:,.1f} kB zipped; "
            f"{len(self.layers.quantized)} of {len(self.layers)} layers in int8; batches "
            f"{self._batches()}"
        )

    def _batches(self) -> str:
        return f"of {self.batch}"


@contextmanager
def beside(path: str | os.PathLike[str], data: bytes) -> Iterator[Path]:
    """A file of these bytes beside another one, whose place it takes if nothing goes wrong."""
    target = Path(path)
    part = target.with_name(target.name + ".part")
    part.write_bytes(data)
    try:
        yield part
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


@torch.no_grad()
def observe(prepared: nn.Module, batches: Iterable[Any]) -> None:
    """Calibrate a model that a tool's own quantizer has prepared."""
    for batch in batches:
        prepared(*(batch if isinstance(batch, tuple) else (batch,)))
