"""Blocks with branches, additions, gates and in-place arithmetic."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fuzz.base import IMAGE, Block, Shape, block, need
from tests.fuzz.convolutions import plain


@block(IMAGE)
def residual(r: random.Random, s: Shape) -> nn.Module:
    return Block(
        lambda m, x: F.relu(m.body(x) + x),
        body=nn.Sequential(plain(r, s[0], s[0]), nn.ReLU(), plain(r, s[0], s[0])),
    )


@block(IMAGE)
def residual_in_place(r: random.Random, s: Shape) -> nn.Module:
    return Block(_add_in_place, conv=plain(r, s[0], s[0]), other=plain(r, s[0], s[0], 1))


def _add_in_place(m: Block, x: Tensor) -> Tensor:
    y = m.conv(x)
    y += m.other(x)
    return F.relu_(y)


@block(IMAGE)
def shortcut_projected(r: random.Random, s: Shape) -> nn.Module:
    need(min(s[1:]) >= 5)
    return Block(
        lambda m, x: m.relu(m.norm(m.conv(x)) + m.short(x)),
        conv=nn.Conv2d(s[0], 12, 3, 2, 1, bias=False),
        norm=nn.BatchNorm2d(12),
        short=nn.Sequential(nn.Conv2d(s[0], 12, 1, 2), nn.BatchNorm2d(12)),
        relu=nn.ReLU(inplace=True),
    )


@block(IMAGE)
def relu_in_place_on_a_branch(r: random.Random, s: Shape) -> nn.Module:
    return Block(
        lambda m, x: m.second(m.relu(m.first(x))) + x,
        first=plain(r, s[0], s[0]),
        second=plain(r, s[0], s[0], 1),
        relu=nn.ReLU(inplace=True),
    )


@block(IMAGE)
def relu_in_place_then_used(r: random.Random, s: Shape) -> nn.Module:
    return Block(_in_place_then_used, conv=plain(r, s[0], s[0]), relu=nn.ReLU(inplace=True))


def _in_place_then_used(m: Block, x: Tensor) -> Tensor:
    y = m.conv(x)
    z = m.relu(y)
    return z + y * 0.5  # y is what ReLU left


@block(IMAGE)
def add_alpha(r: random.Random, s: Shape) -> nn.Module:
    alpha = r.choice((5, 0.1, -2))
    return Block(
        lambda m, x: torch.add(x, m.conv(x), alpha=m.alpha),
        conv=plain(r, s[0], s[0]),
        alpha=alpha,
    )


@block(IMAGE)
def add_alpha_relu(r: random.Random, s: Shape) -> nn.Module:
    return Block(
        lambda m, x: F.relu(torch.add(m.conv(x), torch.sigmoid(x), alpha=3)),
        conv=plain(r, s[0], s[0]),
    )


@block(IMAGE)
def subtract(r: random.Random, s: Shape) -> nn.Module:
    return Block(lambda m, x: x - m.conv(x), conv=plain(r, s[0], s[0]))


@block(IMAGE)
def constants(r: random.Random, s: Shape) -> nn.Module:
    return Block(
        lambda m, x: 1 - m.conv(x * m.scale + 0.3) / 2,
        conv=plain(r, s[0]),
        scale=nn.Parameter(torch.rand(s[0], 1, 1) + 0.5),
    )


@block(IMAGE)
def add_parameter(r: random.Random, s: Shape) -> nn.Module:
    return Block(
        lambda m, x: m.conv(x + m.position),
        conv=plain(r, s[0]),
        position=nn.Parameter(torch.randn(1, *s) * 0.3),
    )


@block(IMAGE)
def broadcast_add(r: random.Random, s: Shape) -> nn.Module:
    return Block(
        lambda m, x: x + m.conv(x.mean((2, 3), keepdim=True)), conv=plain(r, s[0], s[0], 1)
    )


@block(IMAGE)
def concat(r: random.Random, s: Shape) -> nn.Module:
    return Block(
        lambda m, x: torch.cat([m.first(x), F.relu(m.second(x))], 1),
        first=plain(r, s[0], 8),
        second=plain(r, s[0], 4, 1),
    )


@block(IMAGE)
def dense(r: random.Random, s: Shape) -> nn.Module:
    need(s[0] <= 16)
    return Block(lambda m, x: torch.cat([x, F.relu(m.conv(x))], dim=1), conv=plain(r, s[0], 8))


@block(IMAGE)
def stack_mean(r: random.Random, s: Shape) -> nn.Module:
    return Block(
        lambda m, x: torch.stack([m.first(x), m.second(x)]).mean(0),
        first=plain(r, s[0], 8),
        second=plain(r, s[0], 8, 1),
    )


@block(IMAGE)
def gate(r: random.Random, s: Shape) -> nn.Module:
    return Block(
        lambda m, x: m.value(x) * torch.sigmoid(m.gate(x)),
        value=plain(r, s[0], 12),
        gate=plain(r, s[0], 12, 1),
    )


@block(IMAGE)
def squeeze_excitation(r: random.Random, s: Shape) -> nn.Module:
    inner: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(s[0], 4, 1), nn.ReLU()]
    last = r.choice((nn.Sigmoid, nn.Hardsigmoid))()
    return Block(
        lambda m, x: x * m.inner(x), inner=nn.Sequential(*inner, nn.Conv2d(4, s[0], 1), last)
    )


@block(IMAGE)
def multiply_in_place(r: random.Random, s: Shape) -> nn.Module:
    return Block(_times, conv=plain(r, s[0], s[0]), other=plain(r, s[0], s[0], 1))


def _times(m: Block, x: Tensor) -> Tensor:
    y = m.conv(x)
    y *= torch.sigmoid(m.other(x))
    y.add_(0.5)
    return y


@block(IMAGE)
def chunk(r: random.Random, s: Shape) -> nn.Module:
    need(s[0] % 2 == 0)
    return Block(_chunked, conv=plain(r, s[0] // 2, s[0] // 2))


def _chunked(m: Block, x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return torch.cat([F.relu(m.conv(a)), b], 1)


@block(IMAGE)
def split(r: random.Random, s: Shape) -> nn.Module:
    need(s[0] > 4)
    return Block(_split, first=plain(r, 4, 8), second=plain(r, s[0] - 4, 8), size=s[0])


def _split(m: Block, x: Tensor) -> Tensor:
    a, b = torch.split(x, [4, m.size - 4], dim=1)
    return m.first(a) + m.second(b)


@block(IMAGE)
def glu(r: random.Random, s: Shape) -> nn.Module:
    return nn.Sequential(plain(r, s[0], 16), nn.GLU(1))


@block(IMAGE)
def two_exits_of_a_conv(r: random.Random, s: Shape) -> nn.Module:
    return Block(_two_exits, conv=plain(r, s[0], 12))


def _two_exits(m: Block, x: Tensor) -> Tensor:
    y = m.conv(x)
    return F.relu(y) + torch.sigmoid(y) * 0.5


@block(IMAGE)
def matmul_of_features(r: random.Random, s: Shape) -> nn.Module:
    need(s[1] * s[2] <= 100)
    return Block(_gram, conv=plain(r, s[0], 8), size=s[1:])


def _gram(m: Block, x: Tensor) -> Tensor:
    y = m.conv(x).flatten(2)
    mixing = torch.softmax(y @ y.transpose(1, 2) * 0.1, -1)
    return (mixing @ y).unflatten(2, m.size)
