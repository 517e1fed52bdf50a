"""`Host`: a quantization tool that the plugin plugs into, found by entry point.

A host prepares a float model as a student, and converts the student to what its kernels run. Every
algorithm between the two is written once, on `zaq_plugin.student.Student`. Another package adds a
host by the entry point group ``zaq.hosts``: its name, and an object with these methods.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable

from torch import nn

from zaq_plugin.observers import TopKMedianObserver
from zaq_plugin.pwlq import QuantSpec
from zaq_plugin.pwlq.base import is_simulated
from zaq_plugin.report import Audit

GROUP = "zaq.hosts"

Formats = tuple[QuantSpec | None, QuantSpec | int | None]
"""A weight's format and that of the layer's input; None is float."""


@dataclass(frozen=True)
class Assignment:
    """Which layer gets which formats, every exception by the layer's own name.

    Attributes:
        weights: Format of the weights.
        activations: Bits of the layers' inputs, or a spec; None leaves them float.
        layers: Layer name to its own formats; None leaves it float.
        input_bits: Width of the model's own input; None treats it like any other activation.
        observer: Class or factory of the range observer.
        per_tensor: One grid a weight instead of one per output channel.
    """

    weights: QuantSpec
    activations: QuantSpec | int | None = 8
    layers: Mapping[str, Formats | None] = field(default_factory=dict)
    input_bits: int | None = 8
    observer: Callable[..., Any] = TopKMedianObserver
    per_tensor: bool = False

    def within(self, names: Collection[str]) -> dict[str, Formats | None]:
        """Exceptions of the layers that a host knows by these names; others have none there."""
        return {name: value for name, value in self.layers.items() if name in names}


@dataclass
class Prepared:
    """What a host makes of a float model.

    Attributes:
        model: The student's model: `zaq_plugin.student.student_of` knows it.
        notes: What a reader should know.
        fixed_batch: The only batch size that it takes, where the host could not do better.
    """

    model: nn.Module
    notes: list[str] = field(default_factory=list)
    fixed_batch: int | None = None


@runtime_checkable
class Host(Protocol):
    """A quantization tool."""

    name: str
    """As users type it."""
    kernels: str
    """``int8``, or ``float`` where nothing is converted."""

    def prepare(
        self,
        model: nn.Module,
        example_inputs: tuple[Any, ...],
        assignment: Assignment,
        *,
        train: bool = False,
    ) -> Prepared:
        """The student of a float model.

        Args:
            model: In evaluation mode; it is not touched.
            example_inputs: What it is called with.
            assignment: Which layer gets which formats.
            train: For training in the host's own loop: BatchNorm stays apart, steps may learn.

        Raises:
            ValueError: If the host cannot follow the model, or has nothing to quantize.
        """

    def convert(self, model: nn.Module) -> nn.Module:
        """What the host's kernels run, from a calibrated student's model; it is not touched."""

    def audit(self, model: nn.Module) -> Audit:
        """What became of every layer of a student's model, or of a converted one."""

    def why_not(self, assignment: Assignment) -> str | None:
        """Why the host cannot do what is asked for, before anything runs; None: it can."""


def why_not_int8(assignment: Assignment, host: str) -> str | None:
    """Why int8 kernels of torch cannot compute with these formats; None: they can."""
    if assignment.per_tensor:
        return f"{host} gives weights one grid per output channel; use granularity='channel'"
    if is_simulated(assignment.activations):
        return f"{host}: PWLQ activations are simulated, no int8 kernel computes with them"
    return None


def host_names() -> list[str]:
    """The names of all hosts that are installed, in alphabetical order."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def find_host(name: str) -> Host:
    """A host by name; its tool is imported now.

    Raises:
        ValueError: If there is none of that name, or what its entry point names is no host.
        ImportError: If its tool is not installed, or too old or new; the text says what to do.
    """
    points = {point.name: point for point in entry_points(group=GROUP)}
    if name not in points:
        raise ValueError(f"host must be one of {', '.join(host_names())}; got {name!r}")
    host = points[name].load()
    if not isinstance(host, Host):
        missing = [m for m in ("prepare", "convert", "audit", "why_not") if not hasattr(host, m)]
        raise ValueError(
            f"the entry point {name!r} of group {GROUP!r} names {points[name].value}, which is no "
            f"host: it lacks {', '.join(missing) or 'name and kernels'}"
        )
    return host
