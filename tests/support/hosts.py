"""Every way to a student, listed once: what all hosts have in common is tested on `HOSTS`.

To have a host under the contract, put it into `HOSTS` and say how its converted weights are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zaq_plugin.ptq import fold_batch_norm
from zaq_plugin.pwlq import PWLQSpec, QuantSpec
from zaq_plugin.report import Audit
from zaq_plugin.student import student_of
from zaq_plugin.student.fake_quantizers import activation_slots, grid_of
from zaq_plugin.student.host import Assignment, Formats, Host, find_host


@dataclass(frozen=True)
class Way:
    """A host, and what for.

    Attributes:
        host: Its name, for `find_host`.
        train: For training (QAT) instead of calibration alone (PTQ).
    """

    host: str
    train: bool = False

    @property
    def id(self) -> str:
        """For pytest: ``fx-qat``."""
        if self.host in ("simulated", "nncf"):
            return self.host
        return f"{self.host}-{'qat' if self.train else 'ptq'}"

    def found(self) -> Host:
        """The host; its tool is imported now."""
        return find_host(self.host)

    def prepare(
        self,
        model: nn.Module,
        example_inputs: Sequence[Any],
        spec: QuantSpec | None = None,
        activations: QuantSpec | int | None = 8,
        layers: dict[str, Formats | None] | None = None,
    ) -> nn.Module:
        """The student of a float model; simulation is given it with its BatchNorms folded."""
        example = tuple(x.clone() for x in example_inputs)
        if self.host == "simulated":
            model = fold_batch_norm(model, example)
        assignment = Assignment(spec or PWLQSpec(bits=4), activations, layers or {})
        return self.found().prepare(model, example, assignment, train=self.train).model

    def convert(self, student: nn.Module) -> nn.Module:
        """What the host's kernels run."""
        return self.found().convert(student)

    def audit(self, model: nn.Module) -> Audit:
        """What became of every layer."""
        return self.found().audit(model)

    def converted_weights(self, converted: nn.Module) -> dict[str, Tensor]:
        """By layer, the values that the converted model multiplies by."""
        return _READERS[self.host](converted)


def _of_simulation(converted: nn.Module) -> dict[str, Tensor]:
    return {
        name: converted.get_submodule(name).weight.detach()  # type: ignore[operator]
        for name in student_of(converted).layers()
    }


def _of_fx(converted: nn.Module) -> dict[str, Tensor]:
    from zaq_fx import integer_weight
    from zaq_fx.audit import audit

    weights = {}
    for record in audit(converted).quantized:
        stored = integer_weight(converted.get_submodule(record.name))
        assert stored.dtype == torch.qint8, record.name
        weights[record.name] = stored.dequantize()
    return weights


def _of_pt2e(converted: nn.Module) -> dict[str, Tensor]:
    from zaq_pt2e.graph import constant_value, layers

    weights = {}
    for layer in layers(converted):  # type: ignore[arg-type]
        integers = constant_value(converted, layer.node.args[1].args[0])  # type: ignore
        assert integers is not None, layer.name
        assert integers.dtype == torch.int8, layer.name
        value = constant_value(converted, layer.node.args[1])  # type: ignore[arg-type]
        assert value is not None, layer.name
        weights[layer.name] = value
    return weights


def _of_nncf(converted: nn.Module) -> dict[str, Tensor]:
    from zaq_nncf import audit

    return {
        record.name: converted.get_parameter(f"{record.name}.weight").detach()
        for record in audit(converted).quantized
    }


_READERS = {"simulated": _of_simulation, "fx": _of_fx, "pt2e": _of_pt2e, "nncf": _of_nncf}

HOSTS = [
    Way("simulated"),
    Way("fx"),
    Way("fx", train=True),
    Way("pt2e"),
    Way("pt2e", train=True),
    Way("nncf"),
]

every_host = pytest.mark.parametrize(
    "way",
    [
        pytest.param(way, id=way.id, marks=[pytest.mark.slow] * (way.id == "pt2e-qat"))
        for way in HOSTS
    ],
)
"""Gives a test each of them, as ``way``; the one that takes longest is slow."""


def ranges(student: nn.Module) -> dict[str, Tensor]:
    """By activation, the grid that calibration gave it; a copy."""
    slots = activation_slots(student)
    assert slots, "no activation is quantized"
    grids = {slot.name: grid_of(slot).clone() for slot in slots}
    for slot in slots:
        if hasattr(slot.module, "zero_point"):
            grids[f"{slot.name}.zero_point"] = slot.module.zero_point.float().clone()
    return grids


def biases(student: nn.Module) -> dict[str, Tensor]:
    """By layer, the bias in use; a copy."""
    values = {}
    for name, layer in student_of(student).layers().items():
        assert layer.bias is not None, name
        values[name] = layer.bias.detach().clone()
    return values


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor], within: float) -> None:
    """Same names, and values that differ by at most so much."""
    assert list(first) == list(second)
    for name, value in first.items():
        difference = float((value - second[name]).abs().max())
        assert difference <= within, f"{name}: {difference}"


def sqnr(signal: Tensor, other: Tensor) -> float:
    """Signal to noise in dB; infinity where they are equal."""
    signal, other = signal.detach(), other.detach()
    noise = (signal - other).double().square().mean()
    return float(10 * (signal.double().square().mean() / noise).log10())
