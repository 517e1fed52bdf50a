"""A small network with BatchNorm, a depthwise convolution and a residual sum."""

import warnings
from collections.abc import Callable

import pytest
import torch
from networks import perturb
from torch import Tensor, nn

from zaq_fx import HostNote


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.stem(x)))
        x = self.relu(self.bn2(self.conv(x)) + x)
        return self.fc(x.mean((2, 3)))


@pytest.fixture(autouse=True)
def _quiet() -> None:
    warnings.simplefilter("ignore", HostNote)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def make_net() -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        torch.manual_seed(3)
        return perturb(Net())

    return make
