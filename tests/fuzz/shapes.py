"""Blocks that pool, pad, resize and rearrange images, and activations."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fuzz.base import ACTIVATIONS, IMAGE, Block, Shape, block, need
from tests.fuzz.convolutions import plain


@block(IMAGE)
def max_pool(r: random.Random, s: Shape) -> nn.Module:
    need(min(s[1:]) >= 6)
    return r.choice(
        (
            nn.MaxPool2d(2),
            nn.MaxPool2d(3, 2, 1),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.MaxPool2d(3, 1, 1),
        )
    )


@block(IMAGE)
def avg_pool(r: random.Random, s: Shape) -> nn.Module:
    need(min(s[1:]) >= 6)
    return r.choice(
        (
            nn.AvgPool2d(2),
            nn.AvgPool2d(3, 2, 1),
            nn.AvgPool2d(3, 2, 1, count_include_pad=False),
            nn.AvgPool2d(2, ceil_mode=True),
            nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
            nn.AvgPool2d(2, divisor_override=3),
        )
    )


@block(IMAGE)
def adaptive_pool(r: random.Random, s: Shape) -> nn.Module:
    need(min(s[1:]) >= 6)
    return r.choice((nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d))(r.choice((3, (4, 2))))


@block(IMAGE)
def lp_pool(r: random.Random, s: Shape) -> nn.Module:
    need(min(s[1:]) >= 6)
    return Block(lambda m, x: (F.avg_pool2d(x.clamp(min=0.01) ** 3, 2)) ** (1 / 3))


@block(IMAGE)
def alone(r: random.Random, s: Shape) -> nn.Module:
    return r.choice(ACTIVATIONS)()


@block(IMAGE)
def functional_activation(r: random.Random, s: Shape) -> nn.Module:
    functions = (
        lambda m, x: F.leaky_relu(m.conv(x), 0.2),
        lambda m, x: m.conv(x).clamp(-1, 2),
        lambda m, x: x * torch.sigmoid(m.conv(x)).mean(1, keepdim=True),
        lambda m, x: F.hardswish(m.conv(x)),
        lambda m, x: torch.softmax(m.conv(x), 1),
        lambda m, x: m.conv(x).relu_(),
        lambda m, x: m.conv(x).abs().sqrt(),
        lambda m, x: F.gelu(m.conv(x), approximate="tanh"),
    )
    return Block(r.choice(functions), conv=plain(r, s[0]))


@block(IMAGE)
def dropout(r: random.Random, s: Shape) -> nn.Module:
    dropped = r.choice((nn.Dropout, nn.Dropout2d, nn.AlphaDropout))(0.3)
    return nn.Sequential(plain(r, s[0]), nn.ReLU(), dropped)


@block(IMAGE)
def interpolate(r: random.Random, s: Shape) -> nn.Module:
    need(max(s[1:]) <= 10)
    mode = r.choice(("nearest", "bilinear", "bicubic"))
    corners = None if mode == "nearest" else r.random() < 0.5
    return Block(
        lambda m, x: m.conv(
            F.interpolate(x, scale_factor=2.0, mode=m.mode, align_corners=m.corners)
        ),
        conv=plain(r, s[0], 8),
        mode=mode,
        corners=corners,
    )


@block(IMAGE)
def resize_to_branch(r: random.Random, s: Shape) -> nn.Module:
    need(min(s[1:]) >= 6)
    return Block(
        lambda m, x: F.interpolate(m.down(x), size=x.shape[-2:], mode="nearest") + m.side(x),
        down=nn.Conv2d(s[0], 8, 3, 2, 1),
        side=plain(r, s[0], 8, 1),
    )


@block(IMAGE)
def pixel_shuffle(r: random.Random, s: Shape) -> nn.Module:
    need(max(s[1:]) <= 10)
    return nn.Sequential(plain(r, s[0], 32), nn.PixelShuffle(2))


@block(IMAGE)
def pixel_unshuffle(r: random.Random, s: Shape) -> nn.Module:
    need(s[1] % 2 == 0 and s[2] % 2 == 0 and min(s[1:]) >= 6)
    return nn.Sequential(nn.Conv2d(s[0], 4, 1), nn.PixelUnshuffle(2))


@block(IMAGE)
def pad(r: random.Random, s: Shape) -> nn.Module:
    padding = r.choice(
        (
            nn.ZeroPad2d((1, 0, 2, 1)),
            nn.ReflectionPad2d(1),
            nn.ReplicationPad2d(1),
            nn.ConstantPad2d(1, 0.7),
        )
    )
    return nn.Sequential(padding, nn.Conv2d(s[0], 8, 3), nn.ReLU())


@block(IMAGE)
def channel_shuffle(r: random.Random, s: Shape) -> nn.Module:
    need(s[0] % 2 == 0)
    layer = nn.Conv2d(s[0], s[0], 3, padding=1, groups=2)
    return Block(_shuffle, conv=layer)


def _shuffle(m: Block, x: Tensor) -> Tensor:
    y = m.conv(x)
    n, c, h, w = y.shape
    return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


@block(IMAGE)
def channels_behind(r: random.Random, s: Shape) -> nn.Module:
    return Block(
        lambda m, x: m.out(F.gelu(m.inner(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2),
        inner=nn.Linear(s[0], 16),
        out=nn.Linear(16, 8),
    )


@block(IMAGE)
def slicing(r: random.Random, s: Shape) -> nn.Module:
    need(min(s[1:]) >= 6)
    return Block(lambda m, x: m.conv(x[:, :, 1:-1, ::2]), conv=plain(r, s[0]))


@block(IMAGE)
def roll(r: random.Random, s: Shape) -> nn.Module:
    return Block(lambda m, x: m.conv(torch.roll(x, 1, -1)), conv=plain(r, s[0]))


@block(IMAGE)
def weight_used_elsewhere(r: random.Random, s: Shape) -> nn.Module:
    return Block(lambda m, x: m.conv(x) + m.conv.weight.mean(), conv=plain(r, s[0]))


@block(IMAGE)
def to_tokens(r: random.Random, s: Shape) -> nn.Module:
    need(s[1] * s[2] <= 150)
    return Block(lambda m, x: x.flatten(2).transpose(1, 2))


@block(IMAGE)
def patches(r: random.Random, s: Shape) -> nn.Module:
    need(min(s[1:]) >= 6)
    return Block(lambda m, x: m.conv(x).flatten(2).permute(0, 2, 1), conv=nn.Conv2d(s[0], 12, 2, 2))


@block(IMAGE)
def flatten(r: random.Random, s: Shape) -> nn.Module:
    need(s[0] * s[1] * s[2] <= 1600)
    return nn.Flatten()


@block(IMAGE)
def flatten_rows(r: random.Random, s: Shape) -> nn.Module:
    need(s[1] * s[2] <= 150)
    return Block(
        lambda m, x: m.linear(F.relu(m.conv(x)).flatten(2)),
        conv=plain(r, s[0]),
        linear=nn.Linear(s[1] * s[2], 12),
    )


@block(IMAGE)
def global_pool(r: random.Random, s: Shape) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


@block(IMAGE)
def global_mean(r: random.Random, s: Shape) -> nn.Module:
    return Block(lambda m, x: x.mean((2, 3)))


@block(IMAGE)
def global_max(r: random.Random, s: Shape) -> nn.Module:
    return Block(lambda m, x: x.amax((-1, -2)))
