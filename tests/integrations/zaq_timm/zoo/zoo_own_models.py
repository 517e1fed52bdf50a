"""A user's own models, as `package.module:function` names them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def tiny() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


def grey() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 3))
    model.pretrained_cfg = {"input_size": (1, 8, 8), "mean": (0.5,), "std": (0.25,)}  # type: ignore[assignment]
    return model


def number() -> int:
    return 3


class Branching(nn.Module):
    """Takes its way by its input's values: nobody can export it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1) * (2 if float(x.sum()) > 1 else 1))


def branching() -> nn.Module:
    model = Branching()
    model.pretrained_cfg = {"input_size": (3, 8, 8)}  # type: ignore[assignment]
    return model


class Standardised(nn.Conv2d):
    """A convolution that computes its weight at every call, as nfnet's and BiT's do."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = nn.functional.batch_norm(flat, None, None, training=True, momentum=0.0)
        return nn.functional.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride)


class Odd(nn.Module):
    """All that a graph is rewritten for: a computed weight, SAME pooling, autocast switched off."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = Standardised(3, 8, 3)
        self.pool = nn.MaxPool2d(3, 2)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x) - 3.0  # below zero: padding with zeros would change the maximum
        x = self.pool(nn.functional.pad(x, (0, 1, 0, 1), value=float("-inf")))
        with torch.autocast("cpu", enabled=False):
            return self.head(x.float().mean((2, 3)))


def odd() -> nn.Module:
    model = Odd()
    model.pretrained_cfg = {"input_size": (3, 16, 16)}  # type: ignore[assignment]
    return model
