"""Operators that leave values as they are, which a device's kernels want on one grid."""

from __future__ import annotations

import operator

import torch

_aten = torch.ops.aten
MOVES = {
    operator.getitem,
    _aten.alias.default,
    _aten.chunk.default,
    _aten.clone.default,
    _aten.contiguous.default,
    _aten.dropout.default,
    _aten.expand.default,
    _aten.flatten.using_ints,
    _aten.permute.default,
    _aten.reshape.default,
    _aten.select.int,
    _aten.slice.Tensor,
    _aten.split.Tensor,
    _aten.split_with_sizes.default,
    _aten.squeeze.dim,
    _aten.transpose.int,
    _aten.unflatten.int,
    _aten.unsqueeze.default,
    _aten.view.default,
}
"""What reads a value, and what gives the same values in another order or shape, or some of them."""
