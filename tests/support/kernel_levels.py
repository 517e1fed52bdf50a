"""A small network by a method in a host, and what its kernels multiply by."""

from __future__ import annotations

from typing import Any

import torch
from hosts import HOSTS, Way, sqnr
from networks import Block, Net, perturb
from torch import Tensor, nn

from zaq_plugin.pwlq import quantize
from zaq_plugin.strategies import Request
from zaq_plugin.student import student_of

CALIBRATED = [way for way in HOSTS if not way.train]


def network() -> Net:
    """All its layers are to be on fewer than 8 bits, the depthwise one, too."""
    torch.manual_seed(0)
    net = Net(10)
    net.block = Block(8, 16, depthwise=True)
    perturb(net)
    return net


def request_in(way: Way, images: Tensor, bits: int, **more: Any) -> Request:
    """Weights of so many stored bits, by few steps on images at hand."""
    return Request(
        bits,
        8,
        example_inputs=(images[:2],),
        images=images,
        synthetic=images,
        batch_size=16,
        effort=0.01,
        host=way.host,
        int8=True,
        **more,
    )


def check_levels(student: nn.Module, way: Way, images: Tensor) -> dict[str, Tensor]:
    """Weights of the converted model by layer: the student's, bit for bit, and so its answers."""
    expected: dict[str, Tensor] = {}
    for name, layer in student_of(student).layers().items():
        spec, axis = layer.quantizer.spec, layer.axis
        expected[name] = quantize(layer.weight, spec, axis, edges=layer.edges).dequantize()
        assert torch.equal(layer.quantized(), expected[name]), name
    with torch.no_grad():
        prepared = student(images[:16])
        converted = way.convert(student)
        answers = converted(images[:16])
    weights = way.converted_weights(converted)
    assert set(weights) == set(expected)
    for name, values in expected.items():
        assert torch.equal(weights[name], values), name
    assert sqnr(prepared, answers) > 15, "the converted model computes what the student does"
    return weights
