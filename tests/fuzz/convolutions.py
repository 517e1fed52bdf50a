"""Blocks with one convolution of every kind, parametrised weights, and shared layers."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from tests.fuzz.base import IMAGE, Block, Shape, activation, block, divisor, need, width


def plain(r: random.Random, c: int, out: int | None = None, k: int = 3) -> nn.Conv2d:
    """A convolution that keeps the size."""
    return nn.Conv2d(c, out or width(r), k, padding=k // 2, bias=r.random() < 0.6)


@block(IMAGE)
def conv(r: random.Random, s: Shape) -> nn.Module:
    k = r.choice((1, 2, 3, 5))
    need(min(s[1:]) >= k + 2)
    layer = nn.Conv2d(s[0], width(r), k, padding=r.choice((0, k // 2)), bias=r.random() < 0.7)
    return nn.Sequential(layer, activation(r))


@block(IMAGE)
def pointwise(r: random.Random, s: Shape) -> nn.Module:
    return nn.Sequential(nn.Conv2d(s[0], width(r), 1), activation(r))


@block(IMAGE)
def bare_conv(r: random.Random, s: Shape) -> nn.Module:
    return plain(r, s[0])


@block(IMAGE)
def depthwise(r: random.Random, s: Shape) -> nn.Module:
    out = s[0] * r.choice((1, 1, 2))
    need(out <= 24)
    return nn.Sequential(nn.Conv2d(s[0], out, 3, padding=1, groups=s[0]), activation(r))


@block(IMAGE)
def grouped(r: random.Random, s: Shape) -> nn.Module:
    out = width(r)
    return nn.Sequential(
        nn.Conv2d(s[0], out, 3, padding=1, groups=divisor(r, s[0], out)), activation(r)
    )


@block(IMAGE)
def dilated(r: random.Random, s: Shape) -> nn.Module:
    need(min(s[1:]) >= 6)
    return nn.Sequential(
        nn.Conv2d(s[0], width(r), 3, padding=r.choice((0, 2)), dilation=2), activation(r)
    )


@block(IMAGE)
def strided(r: random.Random, s: Shape) -> nn.Module:
    need(min(s[1:]) >= 5)
    stride = r.choice((2, (2, 1), (1, 2)))
    return nn.Sequential(nn.Conv2d(s[0], width(r), 3, stride, 1), activation(r))


@block(IMAGE)
def lopsided(r: random.Random, s: Shape) -> nn.Module:
    k = r.choice(((1, 3), (3, 1)))
    return nn.Sequential(
        nn.Conv2d(s[0], width(r), k, padding=(k[0] // 2, k[1] // 2)), activation(r)
    )


@block(IMAGE)
def string_padding(r: random.Random, s: Shape) -> nn.Module:
    padding = r.choice(("same", "same", "valid"))
    layer = nn.Conv2d(s[0], width(r), r.choice((2, 3)), padding=padding, dilation=r.choice((1, 2)))
    need(padding == "same" or min(s[1:]) >= 6)
    return nn.Sequential(layer, activation(r))


@block(IMAGE)
def padding_mode(r: random.Random, s: Shape) -> nn.Module:
    mode = r.choice(("reflect", "circular", "replicate"))
    padding: int | str = r.choice((1, 1, "same"))
    return nn.Sequential(
        nn.Conv2d(s[0], width(r), 3, padding=padding, padding_mode=mode), activation(r)
    )


@block(IMAGE)
def transposed(r: random.Random, s: Shape) -> nn.Module:
    need(max(s[1:]) <= 12)
    out, k = width(r), r.choice((2, 3))
    layer = nn.ConvTranspose2d(s[0], out, k, 2, padding=k - 2, output_padding=k - 2)
    return nn.Sequential(layer, activation(r))


@block(IMAGE)
def transposed_grouped(r: random.Random, s: Shape) -> nn.Module:
    need(max(s[1:]) <= 12)
    out = r.choice((s[0], width(r)))
    groups = r.choice((s[0], divisor(r, s[0], out))) if out == s[0] else divisor(r, s[0], out)
    parts = [nn.ConvTranspose2d(s[0], out, 2, 2, groups=groups, bias=r.random() < 0.5)]
    return nn.Sequential(*parts, *([nn.BatchNorm2d(out)] if r.random() < 0.5 else []), nn.ReLU())


@block(IMAGE)
def functional_conv(r: random.Random, s: Shape) -> nn.Module:
    weight = nn.Parameter(torch.randn(width(r), s[0], 3, 3) * 0.2)
    bias = nn.Parameter(torch.randn(len(weight)) * 0.1) if r.random() < 0.5 else None
    return Block(lambda m, x: F.conv2d(x, m.weight, m.bias, padding=1), weight=weight, bias=bias)


@block(IMAGE)
def conv1d(r: random.Random, s: Shape) -> nn.Module:
    need(s[1] * s[2] <= 150)
    layer = nn.Conv1d(s[0], width(r), 3, padding=1)
    return Block(
        lambda m, x: F.relu(m.conv(x.flatten(2))).unflatten(2, m.size), conv=layer, size=s[1:]
    )


@block(IMAGE)
def conv3d(r: random.Random, s: Shape) -> nn.Module:
    need(s[0] % 2 == 0)
    layer = nn.Conv3d(s[0] // 2, 4, 3, padding=1)
    half = s[0] // 2
    return Block(
        lambda m, x: F.relu(m.conv(x.unflatten(1, (m.half, 2)))).flatten(1, 2),
        conv=layer,
        half=half,
    )


@block(IMAGE)
def parametrised(r: random.Random, s: Shape) -> nn.Module:
    wrap = r.choice(
        (
            parametrizations.weight_norm,
            weight_norm,
            parametrizations.spectral_norm,
            spectral_norm,
            lambda m: prune.l1_unstructured(m, "weight", amount=0.3),
            lambda m: prune.ln_structured(m, "weight", amount=0.25, n=2, dim=0),
        )
    )
    return nn.Sequential(wrap(plain(r, s[0])), activation(r))


class StandardisedConv2d(nn.Conv2d):
    """A convolution whose weight is normalised per output channel in each call."""

    def forward(self, x: Tensor) -> Tensor:
        """The convolution with the normalised weight."""
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        std = self.weight.std((1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / (std + 1e-5) / self.weight[0].numel() ** 0.5
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


@block(IMAGE)
def standardised(r: random.Random, s: Shape) -> nn.Module:
    return nn.Sequential(StandardisedConv2d(s[0], width(r), 3, padding=1), activation(r))


@block(IMAGE)
def called_twice(r: random.Random, s: Shape) -> nn.Module:
    layer, scale = plain(r, s[0], s[0]), r.choice((0.05, 0.5, 1.0))

    def levels(m: Any, x: Tensor) -> Tensor:
        y = F.relu(m.conv(x)) + F.relu(m.conv(x.flip(-1) * m.scale))
        return y + F.relu(m.conv(x.flip(-2) * m.scale)) if m.scale < 0.1 else y

    return Block(levels, conv=layer, scale=scale)


@block(IMAGE)
def called_in_turn(r: random.Random, s: Shape) -> nn.Module:
    return Block(lambda m, x: F.relu(m.conv(F.relu(m.conv(x)))), conv=plain(r, s[0], s[0]))


@block(IMAGE)
def tied_convs(r: random.Random, s: Shape) -> nn.Module:
    first, second = plain(r, s[0], s[0]), plain(r, s[0], s[0])
    second.weight = first.weight
    return nn.Sequential(first, nn.ReLU(), second)


@block(IMAGE)
def tied_transpose(r: random.Random, s: Shape) -> nn.Module:
    down, up = nn.Conv2d(s[0], 8, 1), nn.ConvTranspose2d(8, s[0], 1)
    up.weight = down.weight
    return nn.Sequential(down, nn.ReLU(), up)


@block(IMAGE)
def one_sign(r: random.Random, s: Shape) -> nn.Module:
    layer = plain(r, s[0])
    layer.weight.data[0].abs_()
    layer.weight.data[1].abs_().neg_()
    layer.weight.data[2] *= 0.01
    return nn.Sequential(layer, nn.ReLU())


@block(IMAGE)
def dead_channel(r: random.Random, s: Shape) -> nn.Module:
    layer = nn.Conv2d(s[0], width(r), 3, padding=1)
    layer.weight.data[r.randrange(8)] = 0
    return nn.Sequential(layer, activation(r))


@block(IMAGE)
def no_grad_inside(r: random.Random, s: Shape) -> nn.Module:
    return Block(_frozen, inner=nn.Sequential(plain(r, s[0]), nn.ReLU()))


def _frozen(m: Block, x: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = m.inner(x)
    return y
