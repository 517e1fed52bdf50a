"""The caches of the test run answer as the hosts do, and no call sees another's changes."""

from __future__ import annotations

import sys

import host_caches
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("torchao", reason="the host of patterns")


class Scaled(nn.Module):
    """One pattern for each factor: the same code, another closure."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.function = lambda x: x * factor

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def test_the_host_of_patterns_has_the_cache() -> None:
    import torchao.quantization.pt2e.qat_utils as qat_utils

    host_caches.install()
    utils = sys.modules["torchao.quantization.pt2e.utils"]
    assert hasattr(getattr(utils, host_caches.PATTERNS), "cache")
    assert getattr(qat_utils, host_caches.PATTERNS) is getattr(utils, host_caches.PATTERNS)


def test_a_pattern_is_exported_once_and_copied() -> None:
    calls = []

    def export(pattern: nn.Module, inputs: tuple[Tensor, ...], is_cuda: bool = False) -> nn.Module:
        calls.append(is_cuda)
        return torch.export.export(pattern, inputs, strict=True).module()

    cached, x = host_caches.caching(export), torch.ones(2)
    first, again = cached(Scaled(3.0), (x,)), cached(Scaled(3.0), (2 * x,))
    assert len(calls) == 1
    assert first is not again
    assert first.graph is not again.graph
    assert first.code == again.code
    other, longer, there = (
        cached(Scaled(5.0), (x,)),
        cached(Scaled(3.0), (torch.ones(3),)),
        cached(Scaled(3.0), (x,), True),
    )
    assert calls == [False, False, False, True]
    assert torch.equal(again(x), 3 * x)
    assert torch.equal(other(x), 5 * x)
    assert torch.equal(longer(torch.ones(3)), torch.full((3,), 3.0))
    assert torch.equal(there(x), 3 * x)


def test_registries_are_read_once_and_take_operators_of_their_own() -> None:
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    import zaq_onnx  # noqa: F401

    host_caches.install()
    assert hasattr(ONNXRegistry.from_torchlib, "cache_info")  # what exports take
    calls = []

    class Registry(ONNXRegistry):
        @classmethod
        def from_torchlib(cls, opset_version: int = 18) -> ONNXRegistry:
            calls.append(opset_version)
            registry = cls()
            registry._opset_version = opset_version
            return registry

    read, relu = host_caches.registries(Registry), torch.ops.aten.relu.default
    first = read(opset_version=20)
    first.register_op(relu, lambda x: x)
    first.register_op(relu, lambda x: -x)
    again = read(opset_version=20)
    again.register_op(relu, lambda x: 2 * x)
    assert [len(registry.functions[relu.name()]) for registry in (first, again)] == [2, 1]
    assert not read(opset_version=20).functions
    assert read(opset_version=21).opset_version == 21
    assert calls == [20, 21]
