"""Blocks with normalisations before and behind layers."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import nn

from tests.fuzz.base import IMAGE, Block, Shape, activation, block, divisor, need, width
from tests.fuzz.convolutions import plain


@block(IMAGE)
def conv_bn(r: random.Random, s: Shape) -> nn.Module:
    layer = plain(r, s[0])
    return nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels), activation(r))


@block(IMAGE)
def conv_bn_bare(r: random.Random, s: Shape) -> nn.Module:
    layer = plain(r, s[0], k=1)
    return nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels, eps=r.choice((1e-5, 1e-3, 0.1))))


@block(IMAGE)
def depthwise_bn(r: random.Random, s: Shape) -> nn.Module:
    out = width(r)
    return nn.Sequential(
        nn.Conv2d(s[0], s[0], 3, padding=1, groups=s[0], bias=False),
        nn.BatchNorm2d(s[0]),
        nn.ReLU6(),
        nn.Conv2d(s[0], out, 1, bias=False),
        nn.BatchNorm2d(out),
    )


@block(IMAGE)
def transposed_bn(r: random.Random, s: Shape) -> nn.Module:
    need(max(s[1:]) <= 12)
    out = width(r)
    return nn.Sequential(
        nn.ConvTranspose2d(s[0], out, 2, 2, bias=False), nn.BatchNorm2d(out), activation(r)
    )


@block(IMAGE)
def bn_before(r: random.Random, s: Shape) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(s[0]), nn.ReLU(), plain(r, s[0]))


@block(IMAGE)
def bn_straight_before(r: random.Random, s: Shape) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(s[0]), plain(r, s[0]))


@block(IMAGE)
def bn_alone(r: random.Random, s: Shape) -> nn.Module:
    return nn.BatchNorm2d(s[0], affine=r.random() < 0.7)


@block(IMAGE)
def bn_untracked(r: random.Random, s: Shape) -> nn.Module:
    layer = plain(r, s[0])
    norm = nn.BatchNorm2d(layer.out_channels, track_running_stats=False)
    return nn.Sequential(layer, norm, activation(r))


@block(IMAGE)
def bn_with_dead_scale(r: random.Random, s: Shape) -> nn.Module:
    layer = plain(r, s[0])
    return Block(
        lambda m, x: F.relu(m.bn(m.conv(x))) + m.bias,
        conv=layer,
        bn=nn.BatchNorm2d(layer.out_channels),
        bias=nn.Parameter(torch.rand(layer.out_channels, 1, 1)),
        zero_scales=r.randrange(1, 4),
    )


@block(IMAGE)
def bn_used_elsewhere(r: random.Random, s: Shape) -> nn.Module:
    layer = plain(r, s[0])
    return Block(_skip, conv=layer, bn=nn.BatchNorm2d(layer.out_channels))


def _skip(m: Block, x: torch.Tensor) -> torch.Tensor:
    y = m.conv(x)
    return y + torch.relu(m.bn(y))


@block(IMAGE)
def shared_conv_bn(r: random.Random, s: Shape) -> nn.Module:
    layer = plain(r, s[0])
    return Block(
        lambda m, x: m.bn(m.conv(x)) - 0.5 * m.bn(m.conv(x.flip(-1))),
        conv=layer,
        bn=nn.BatchNorm2d(layer.out_channels),
    )


@block(IMAGE)
def shared_conv_two_bns(r: random.Random, s: Shape) -> nn.Module:
    layer = plain(r, s[0])
    return Block(
        lambda m, x: F.relu(m.first(m.conv(x))) + m.second(m.conv(x.flip(-2))),
        conv=layer,
        first=nn.BatchNorm2d(layer.out_channels),
        second=nn.BatchNorm2d(layer.out_channels),
    )


@block(IMAGE)
def shared_bn_two_convs(r: random.Random, s: Shape) -> nn.Module:
    out = width(r)
    return Block(
        lambda m, x: m.bn(m.first(x)) + m.bn(m.second(x)),
        first=plain(r, s[0], out),
        second=plain(r, s[0], out, 1),
        bn=nn.BatchNorm2d(out),
    )


@block(IMAGE)
def group_norm(r: random.Random, s: Shape) -> nn.Module:
    layer = plain(r, s[0])
    norm = nn.GroupNorm(divisor(r, layer.out_channels), layer.out_channels)
    return nn.Sequential(layer, norm, activation(r))


@block(IMAGE)
def layer_norm_2d(r: random.Random, s: Shape) -> nn.Module:
    layer = plain(r, s[0])
    return Block(
        lambda m, x: m.norm(m.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
        conv=layer,
        norm=nn.LayerNorm(layer.out_channels),
    )


@block(IMAGE)
def layer_norm_whole(r: random.Random, s: Shape) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(s), plain(r, s[0]), nn.ReLU())


@block(IMAGE)
def instance_norm(r: random.Random, s: Shape) -> nn.Module:
    layer = plain(r, s[0])
    return nn.Sequential(
        layer, nn.InstanceNorm2d(layer.out_channels, affine=r.random() < 0.5), activation(r)
    )


@block(IMAGE)
def instance_norm_tracked(r: random.Random, s: Shape) -> nn.Module:
    layer = plain(r, s[0])
    norm = nn.InstanceNorm2d(layer.out_channels, affine=True, track_running_stats=True)
    return nn.Sequential(layer, norm, activation(r))


@block(IMAGE)
def local_response(r: random.Random, s: Shape) -> nn.Module:
    return nn.Sequential(plain(r, s[0]), nn.LocalResponseNorm(3), nn.ReLU())


@block(IMAGE)
def bn_add_relu(r: random.Random, s: Shape) -> nn.Module:
    return Block(
        lambda m, x: F.relu(m.bn(m.conv(x)) + x),
        conv=plain(r, s[0], s[0]),
        bn=nn.BatchNorm2d(s[0]),
    )
