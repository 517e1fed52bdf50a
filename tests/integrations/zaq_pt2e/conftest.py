"""A small network with BatchNorm of every awkward kind, and its export."""

from collections.abc import Callable

import pytest
import torch
from networks import perturb
from torch import Tensor, nn
from torch.fx import GraphModule


class Net(nn.Module):
    """Conv-BN with eps 1e-3, a zero gamma, BatchNorm without scale and shift, a sum, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, bias=False)
        self.bn = nn.BatchNorm2d(8, eps=1e-3)
        self.pool = nn.MaxPool2d(2)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.bn2 = nn.BatchNorm2d(8, affine=False)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.bn(self.stem(x))))
        x = self.relu(self.bn2(self.conv(x)) + x)
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(3)
    model = perturb(Net())
    with torch.no_grad():
        model.bn.weight[0] = 0
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def export() -> Callable[..., GraphModule]:
    """Export with a dynamic batch."""

    def run(model: nn.Module, images: Tensor, strict: bool = False) -> GraphModule:
        shapes = ({0: torch.export.Dim("batch", min=2)},)
        program = torch.export.export(model, (images,), dynamic_shapes=shapes, strict=strict)
        return program.module()

    return run
