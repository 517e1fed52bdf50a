"""Networks of a few layers with BatchNorm statistics of real data, and the data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import pytest
import torch
from hosts import Way
from torch import Tensor, nn

from zaq_plugin.pwlq import PWLQSpec

SIDE = 8


class Plain(nn.Module):
    """Convolution, BatchNorm and ReLU, twice, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(self.stem(x)).mean((2, 3)))


class Depthwise(nn.Module):
    """A depthwise convolution between two dense ones; registered in another order than run."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 5)
        self.project = nn.Conv2d(8, 6, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.stem = nn.Conv2d(3, 8, 3, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norms[0](self.stem(x)))
        y = torch.relu(self.norms[1](self.depthwise(y)))
        return self.fc(self.project(y).mean((2, 3)))


class Residual(nn.Module):
    """Two convolutions around a sum with a projected shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.first = nn.Conv2d(6, 8, 3, 2, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.short = nn.Conv2d(6, 8, 1, 2)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm2(self.second(torch.relu(self.norm1(self.first(x)))))
        return self.fc(torch.relu(y + self.short(x)).mean((2, 3)))


class Perceptron(nn.Module):
    """Linear layers alone."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(12, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(x)))


ORDER = {
    Plain: ["stem.0", "body.0", "fc"],
    Depthwise: ["stem", "depthwise", "project", "fc"],
    Residual: ["stem.0", "first", "second", "short", "fc"],
    Perceptron: ["fc1", "fc2"],
}
"""Layers in order of execution."""


def inputs(kind: Callable[[], nn.Module], count: int = 16, seed: int = 1) -> Tensor:
    """Inputs of a network: smooth, with means of their own in each channel."""
    generator = torch.Generator().manual_seed(seed)
    if kind is Perceptron:
        few = torch.randn(count, 3, generator=generator)  # so that features are correlated
        mixed = few @ torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
        return mixed + 0.3 * torch.randn(count, 12, generator=generator) + 0.3
    coarse = torch.randn(count, 3, SIDE // 2, SIDE // 2, generator=generator)
    images = nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear")
    return images + torch.tensor([0.5, 0.0, -0.3])[:, None, None]


def network(kind: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The network, its BatchNorms as after training on such inputs; evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind().train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.3)
        with torch.no_grad():
            for step in range(20):
                model(inputs(kind, 16, 100 + step))
    return model.eval()


every_network = pytest.mark.parametrize("kind", list(ORDER), ids=lambda kind: kind.__name__.lower())
"""Gives a test each of them, as ``kind``."""


@cache
def _prepared(way: Way, kind: type[nn.Module], bits: int, seed: int) -> nn.Module:
    return way.prepare(network(kind, seed), (inputs(kind, 2),), PWLQSpec(bits=bits))


def student_from(way: Way, kind: type[nn.Module], bits: int = 4, seed: int = 0) -> nn.Module:
    """A student of the network as the host has prepared it, not calibrated; a copy of its own."""
    return copy.deepcopy(_prepared(way, kind, bits, seed))
