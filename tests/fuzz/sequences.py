"""Blocks on tokens and on vectors."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from tests.fuzz.base import TOKENS, VECTOR, Block, Shape, activation, block, need, width


def _linear(r: random.Random, s: Shape) -> nn.Module:
    return nn.Sequential(nn.Linear(s[-1], width(r), bias=r.random() < 0.7), activation(r))


def _norm_linear(r: random.Random, s: Shape) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(s[-1]), nn.Linear(s[-1], width(r)))


def _perceptron(r: random.Random, s: Shape) -> nn.Module:
    inner = nn.Sequential(nn.Linear(s[-1], 24), nn.GELU(), nn.Dropout(0.2), nn.Linear(24, s[-1]))
    return Block(lambda m, x: x + m.inner(m.norm(x)), norm=nn.LayerNorm(s[-1]), inner=inner)


def _gated(r: random.Random, s: Shape) -> nn.Module:
    return Block(
        lambda m, x: m.out(F.silu(m.gate(x)) * m.value(x)),
        gate=nn.Linear(s[-1], 16, bias=False),
        value=nn.Linear(s[-1], 16, bias=False),
        out=nn.Linear(16, 12),
    )


def _shared(r: random.Random, s: Shape) -> nn.Module:
    return Block(lambda m, x: m.linear(x) + m.linear(x.flip(-1)), linear=nn.Linear(s[-1], width(r)))


def _tied(r: random.Random, s: Shape) -> nn.Module:
    return Block(
        lambda m, x: F.linear(F.relu(m.linear(x)), m.linear.weight.t()),
        linear=nn.Linear(s[-1], 12),
    )


def _parametrised(r: random.Random, s: Shape) -> nn.Module:
    wrap = r.choice(
        (
            parametrizations.weight_norm,
            parametrizations.spectral_norm,
            parametrizations.orthogonal,
            lambda m: prune.l1_unstructured(m, "weight", amount=0.3),
        )
    )
    return nn.Sequential(wrap(nn.Linear(s[-1], width(r))), activation(r))


def _functional(r: random.Random, s: Shape) -> nn.Module:
    return Block(
        lambda m, x: F.relu(F.linear(x, m.weight, m.bias)),
        weight=nn.Parameter(torch.randn(12, s[-1]) * 0.3),
        bias=nn.Parameter(torch.randn(12) * 0.1),
    )


def _product(r: random.Random, s: Shape) -> nn.Module:
    return Block(lambda m, x: x @ m.weight, weight=nn.Parameter(torch.randn(s[-1], 12) * 0.3))


for _rank, _suffix in ((TOKENS, "_tokens"), (VECTOR, "_vector")):
    for _make in (
        _linear,
        _norm_linear,
        _perceptron,
        _gated,
        _shared,
        _tied,
        _parametrised,
        _functional,
        _product,
    ):

        def _renamed(r: random.Random, s: Shape, make: object = _make) -> nn.Module:
            return make(r, s)  # type: ignore[operator, no-any-return]

        _renamed.__name__ = _make.__name__.lstrip("_") + _suffix
        block(_rank)(_renamed)


@block(TOKENS)
def attention(r: random.Random, s: Shape) -> nn.Module:
    need(s[1] % 2 == 0)
    mask = r.choice((None, "causal", "added", "boolean"))
    attention_mask = None
    if mask == "added":
        attention_mask = torch.randn(s[0], s[0])
    elif mask == "boolean":
        attention_mask = torch.ones(s[0], s[0], dtype=torch.bool).tril()
    return Block(
        _attend,
        qkv=nn.Linear(s[1], 3 * s[1]),
        out=nn.Linear(s[1], s[1]),
        mask=attention_mask,
        causal=mask == "causal",
    )


def _attend(m: Block, x: Tensor) -> Tensor:
    n, length, w = x.shape
    q, k, v = m.qkv(x).view(n, length, 3, 2, w // 2).permute(2, 0, 3, 1, 4).unbind(0)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=m.mask, is_causal=m.causal)
    return x + m.out(y.transpose(1, 2).reshape(n, length, w))


@block(TOKENS)
def attention_by_hand(r: random.Random, s: Shape) -> nn.Module:
    return Block(
        lambda m, x: torch.softmax(m.q(x) @ m.k(x).transpose(-2, -1) / m.width**0.5, -1) @ m.v(x),
        q=nn.Linear(s[1], 8),
        k=nn.Linear(s[1], 8),
        v=nn.Linear(s[1], 12),
        width=8,
    )


@block(TOKENS)
def multihead_attention(r: random.Random, s: Shape) -> nn.Module:
    need(s[1] % 2 == 0)
    layer = nn.MultiheadAttention(s[1], 2, batch_first=True)
    return Block(lambda m, x: x + m.attention(x, x, x, need_weights=False)[0], attention=layer)


@block(TOKENS)
def class_token(r: random.Random, s: Shape) -> nn.Module:
    return Block(
        lambda m, x: torch.cat([m.token.expand(x.shape[0], -1, -1), x], 1) + m.position,
        token=nn.Parameter(torch.randn(1, 1, s[1])),
        position=nn.Parameter(torch.randn(1, s[0] + 1, s[1]) * 0.2),
    )


@block(TOKENS)
def conv_over_tokens(r: random.Random, s: Shape) -> nn.Module:
    return Block(
        lambda m, x: F.relu(m.bn(m.conv(x.transpose(1, 2)))).transpose(1, 2),
        conv=nn.Conv1d(s[1], 12, 3, padding=1),
        bn=nn.BatchNorm1d(12),
    )


@block(TOKENS)
def mix_tokens(r: random.Random, s: Shape) -> nn.Module:
    return Block(
        lambda m, x: x + m.mix(x.transpose(1, 2)).transpose(1, 2), mix=nn.Linear(s[0], s[0])
    )


@block(TOKENS)
def pool_tokens(r: random.Random, s: Shape) -> nn.Module:
    return Block(r.choice((lambda m, x: x.mean(1), lambda m, x: x[:, 0], lambda m, x: x.amax(1))))


@block(TOKENS)
def flatten_tokens(r: random.Random, s: Shape) -> nn.Module:
    need(s[0] * s[1] <= 1600)
    return Block(lambda m, x: x.reshape(x.shape[0], -1))


@block(VECTOR)
def linear_bn(r: random.Random, s: Shape) -> nn.Module:
    layer = nn.Linear(s[0], width(r), bias=r.random() < 0.5)
    return nn.Sequential(layer, nn.BatchNorm1d(layer.out_features), activation(r))


@block(VECTOR)
def bn_linear(r: random.Random, s: Shape) -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(s[0]), nn.Linear(s[0], width(r)))


@block(VECTOR)
def learned_scale(r: random.Random, s: Shape) -> nn.Module:
    return Block(
        lambda m, x: x * torch.sigmoid(m.linear(m.vector)),
        linear=nn.Linear(6, s[0]),
        vector=nn.Parameter(torch.randn(6)),
    )


@block(VECTOR)
def to_image(r: random.Random, s: Shape) -> nn.Module:
    return nn.Sequential(nn.Linear(s[0], 8 * 16), nn.Unflatten(1, (8, 4, 4)), nn.ReLU())


@block(VECTOR)
def bilinear(r: random.Random, s: Shape) -> nn.Module:
    return Block(
        lambda m, x: m.bilinear(m.first(x), m.second(x)),
        first=nn.Linear(s[0], 6),
        second=nn.Linear(s[0], 6),
        bilinear=nn.Bilinear(6, 6, 8),
    )


@block(VECTOR)
def softmax_gate(r: random.Random, s: Shape) -> nn.Module:
    return Block(lambda m, x: x * torch.softmax(m.linear(x), -1), linear=nn.Linear(s[0], s[0]))
