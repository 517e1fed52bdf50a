"""Folding Conv-BN after training, in conversion.

For training the host writes a convolution with BatchNorm as

    factor = gamma / sqrt(var + eps);  norm(conv(x, raw * factor) / factor [+ bias])

and its own conversion takes that apart by comparing the graph with dozens of patterns, which takes
minutes on large models, changes eps, and leaves unquantized layers in pieces. Here the same is done
by following the nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from zaq_pt2e._compat import spare_folding
from zaq_pt2e.batch_norm import BATCH_NORM, batch_norms
from zaq_pt2e.graph import (
    WEIGHTED,
    argument,
    constant_value,
    new_tensor,
    root_attribute,
    set_argument,
    tensor_at,
)

_aten = torch.ops.aten

SNAPPED = "_pwlq"
"""How the names of weights end that conversion put on their levels."""


@dataclass(frozen=True)
class FusedNorm:
    """A convolution with BatchNorm in the host's form for training.

    Attributes:
        conv: The convolution.
        product: ``raw * factor``, its weight before quantization.
        norm: The BatchNorm.
        bias: The convolution's own bias, which is added after the division.
    """

    conv: Node
    product: Node
    norm: Node
    bias: Node | None


def fused_norm(conv: Node, product: object) -> FusedNorm | None:
    """The pattern around a convolution, or None if there is none.

    Args:
        conv: The convolution.
        product: What feeds its weight, quantization left out.
    """
    if not isinstance(product, Node) or not _is(product, _aten.mul.Tensor):
        return None
    ratio, division = _reshaped(argument(product, 1)), _only_user(conv)
    if ratio is None or division is None or not _is(ratio, _aten.div.Tensor):
        return None
    if not _is(division, _aten.div.Tensor) or _reshaped(division.args[1]) is not ratio:
        return None
    following, bias = _only_user(division), None
    if following is not None and _is(following, _aten.add.Tensor):
        bias = _reshaped(following.args[1])
        following = _only_user(following)
    if following is None or not _is(following, BATCH_NORM):
        return None
    if following.args[1] is not ratio.args[0]:
        return None
    return FusedNorm(conv, product, following, bias)


def _is(node: object, target: object) -> bool:
    return isinstance(node, Node) and node.op == "call_function" and node.target is target


def _reshaped(node: object) -> Node | None:
    if not isinstance(node, Node) or not _is(node, _aten.reshape.default):
        return None
    source = node.args[0]
    return source if isinstance(source, Node) else None


def _only_user(node: Node) -> Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


@torch.no_grad()
def fold(model: GraphModule, fused: FusedNorm) -> None:
    """Let the convolution do what BatchNorm did; its weight holds ``factor`` already."""

    def read(position: int) -> Tensor:
        node: Any = fused.norm.args[position]
        return tensor_at(model, str(node.target)).double()

    gamma, beta, mean, var = (read(i) for i in (1, 2, 3, 4))
    bias = constant_value(model, fused.bias)
    offset = (0.0 if bias is None else bias.double()) - mean
    eps = float(argument(fused.norm, 7))
    value = beta + offset * gamma / torch.sqrt(var + eps)
    name = (root_attribute(fused.product) or "weight").removesuffix(".weight")
    parameter = nn.Parameter(value.float())
    set_argument(fused.conv, 2, new_tensor(model, f"{name}.folded_bias", parameter, fused.conv))
    fused.norm.replace_all_uses_with(fused.conv)
    model.graph.erase_node(fused.norm)


def fold_rest(model: GraphModule) -> None:
    """Fold the Conv-BN pairs whose weights nobody quantizes, and stop counting batches."""
    for conv in list(model.graph.nodes):
        if conv.op != "call_function" or conv.target not in WEIGHTED:
            continue
        product = argument(conv, 1)
        if not isinstance(product, Node) or product.op != "call_function":
            continue
        fused = fused_norm(conv, product)
        value = None if fused is None else constant_value(model, product)
        if fused is None or value is None:
            continue
        name = f"{root_attribute(product) or 'weight'}_folded"
        weight = new_tensor(model, name, nn.Parameter(value.clone()), conv)
        set_argument(conv, 1, weight)
        fold(model, fused)
    for node in list(model.graph.nodes):
        counts = _is(node, _aten.add_.Tensor) and str(root_attribute(node.args[0])).endswith(
            "num_batches_tracked"
        )
        if counts and not node.users:
            model.graph.erase_node(node)


def nothing_to_fold(model: GraphModule) -> bool:
    """Whether a converted graph is ours, and no BatchNorm in it is in the host's form."""
    if not any(n.op == "get_attr" and SNAPPED in str(n.target) for n in model.graph.nodes):
        return False
    for norm in batch_norms(model):
        source = norm.args[0]
        if _is(source, _aten.add.Tensor):
            source = source.args[0]  # type: ignore[union-attr]
        if _is(source, _aten.div.Tensor):
            return False
    return True


# The host's own folding, after ours, finds nothing, and takes minutes for it.
spare_folding(nothing_to_fold)
