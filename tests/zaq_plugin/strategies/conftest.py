"""A small network and what a strategy is asked for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import Net, perturb
from torch import nn

from zaq_plugin.strategies import Request

SHAPE = (3, 16, 16)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return perturb(Net(5, depthwise=False))


@pytest.fixture
def request_of() -> Callable[..., Request]:
    def make(weight_bits: int = 4, activation_bits: int | None = 8, **changes: Any) -> Request:
        values = {
            "example_inputs": (torch.zeros(2, *SHAPE),),
            "synthetic_count": 8,
            "batch_size": 4,
            "effort": 0.02,
            **changes,
        }
        return Request(weight_bits, activation_bits, **values)

    return make


@pytest.fixture
def real() -> torch.Tensor:
    return torch.randn(12, *SHAPE, generator=torch.Generator().manual_seed(7))
