"""What hosts make by default does not overflow 16 bits; what they are told to leave alone does."""

from __future__ import annotations

import pytest
import torch
from hosts import Way, every_host
from networks import Net, perturb
from overflow import overflows
from torch import nn

from zaq_plugin.ptq import calibrate
from zaq_plugin.pwlq import PWLQSpec, QuantSpec, UniformSpec
from zaq_plugin.student import student_of


def prepared(way: Way, spec: QuantSpec) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model, images = perturb(Net(10)), torch.randn(16, 3, 17, 17)
    student = way.prepare(model.eval(), (images[:2],), spec)
    calibrate(student, [images])
    return student, images


def wide(student: nn.Module) -> set[str]:
    """Layers whose levels overflow, by what they are stored as."""
    return {
        name
        for name, layer in student_of(student).layers().items()
        if overflows(layer.tensor().integer_weight(), layer.axis)
    }


@every_host
@pytest.mark.parametrize("spec", [PWLQSpec(4), UniformSpec(8)], ids=["pwlq", "uniform"])
def test_no_converted_weight_overflows(way: Way, spec: QuantSpec) -> None:
    student, _ = prepared(way, spec)
    values = {n: layer.quantized().clone() for n, layer in student_of(student).layers().items()}
    assert wide(student) == set()
    converted = way.converted_weights(way.convert(student))
    for name, value in values.items():
        assert torch.equal(converted[name], value), name


@every_host
def test_overflow_is_left_alone_by_name(way: Way) -> None:
    student, _ = prepared(way, PWLQSpec(4, overflow="allowed"))
    assert wide(student) == set(student_of(student).layers())


@every_host
def test_weights_that_training_moves_do_not_overflow(way: Way) -> None:
    """The grids are those of the weights before."""
    student, _ = prepared(way, PWLQSpec(4))
    for layer in student_of(student).layers().values():
        noise = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(1))
        layer.write(layer.weight + 0.7 * layer.weight.std() * noise)
    assert wide(student) == set()
    values = {n: layer.quantized().clone() for n, layer in student_of(student).layers().items()}
    converted = way.converted_weights(way.convert(student))
    for name, value in values.items():
        assert torch.equal(converted[name], value), name
