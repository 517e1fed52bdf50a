"""A small trained-looking network, images, and the network quantized."""

from collections.abc import Callable

import pytest
import torch
from networks import Net, perturb
from torch import Tensor, nn

import zaq_nncf
from zaq_plugin import PWLQSpec

FAST = PWLQSpec(bits=4, policy="gaussian")
"""Where not the best levels are tested, but what is done with them."""


LAYERS = ["stem.0", "block.conv1", "block.conv2", "block.short.0", "fc"]


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(3)
    return perturb(Net(6))


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
