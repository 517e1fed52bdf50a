"""What building blocks are made of, and the table of them.

A block is a function of a random generator and of the shape it is given (without the batch), which
returns a module. Shapes have three ranks: images (channels, height, width), tokens (length, width)
and vectors (width,).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

IMAGE, TOKENS, VECTOR = 3, 2, 1
Shape = tuple[int, ...]
Make = Callable[[random.Random, Shape], nn.Module]


class UnfitError(Exception):
    """A block that cannot stand at this shape; the network is built without it."""


@dataclass(frozen=True)
class Kind:
    """A kind of block: its name, the rank of shape that it takes, and its maker."""

    name: str
    rank: int
    make: Make


KINDS: dict[str, Kind] = {}


def block(rank: int) -> Callable[[Make], Make]:
    """Enter a maker into `KINDS` under its function's name."""

    def enter(make: Make) -> Make:
        name = make.__name__.rstrip("_")
        KINDS[name] = Kind(name, rank, make)
        return make

    return enter


class Block(nn.Module):
    """Modules, parameters and buffers by name, and a function that uses them."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        """What the function makes of x."""
        return self.function(self, x)


def need(condition: bool) -> None:
    """Raise `UnfitError` unless the condition holds."""
    if not condition:
        raise UnfitError


def width(r: random.Random) -> int:
    """A number of channels."""
    return r.choice((8, 12, 16))


def divisor(r: random.Random, *numbers: int) -> int:
    """A number of groups above one that divides all numbers."""
    groups = [g for g in (2, 4) if all(n % g == 0 for n in numbers)]
    need(bool(groups))
    return r.choice(groups)


def activation(r: random.Random) -> nn.Module:
    """An activation, most often a ReLU."""
    if r.random() < 0.5:
        return nn.ReLU(inplace=r.random() < 0.4)
    return r.choice(ACTIVATIONS)()


ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU6,
    nn.Hardswish,
    nn.SiLU,
    nn.GELU,
    nn.LeakyReLU,
    nn.ELU,
    nn.Sigmoid,
    nn.Tanh,
    nn.Mish,
    nn.Softplus,
    nn.Hardsigmoid,
    nn.PReLU,
    lambda: nn.GELU(approximate="tanh"),
    lambda: nn.Hardtanh(-1.5, 2.0),
    lambda: nn.Hardswish(inplace=True),
    lambda: nn.ReLU6(inplace=True),
)
