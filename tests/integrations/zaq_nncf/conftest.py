"""A small trained-looking network, images, and the network quantized."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import zaq_nncf
from zaq_plugin import PWLQSpec

FAST = PWLQSpec(bits=4, policy="gaussian")
"""Where not the best levels are tested, but what is done with them."""


class Block(nn.Module):
    """Two convolutions, one depthwise, and a strided shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, groups=outputs, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2), nn.BatchNorm2d(outputs))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.short(x))


class Net(nn.Module):
    """A small residual network: LAYERS layers with weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.block = Block(8, 16)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.block(self.stem(x))).flatten(1))


LAYERS = ["stem.0", "block.conv1", "block.conv2", "block.short.0", "fc"]


@pytest.fixture
def net() -> nn.Module:
    """BatchNorm statistics as after training, so that folding has something to do."""
    torch.manual_seed(3)
    model = Net()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def quantized(net: nn.Module, images: Tensor) -> nn.Module:
    """The network at 4 MAC bits, activations at 8."""
    return zaq_nncf.quantize(net, list(images.split(4)), FAST)


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> "object":
    yield
    assert not zaq_nncf.is_registered()


@pytest.fixture
def hooks() -> Callable[[nn.Module], dict[str, nn.Module]]:
    """All of NNCF's hooks by name."""
    from nncf.torch.function_hook.wrapper import get_hook_storage

    return lambda model: dict(get_hook_storage(model).named_hooks())
