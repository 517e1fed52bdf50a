"""BatchNorm in the host's quantization-aware training: made to survive it, folded after it.

The host's QAT patterns and its switch between training and evaluation rewrite every BatchNorm to
``eps = 1e-5``, know no BatchNorm without scale and shift, divide by gamma, and know no BatchNorm
behind conv3d or linear. What is done about each, without changing what the model computes in
evaluation mode:

* ``eps``: ``var + eps = (var + eps - 1e-5) + 1e-5``; the running variance takes the difference.
* no scale and shift: they are made, 1 and 0.
* gamma near 0: moved to `SMALLEST_GAMMA`, which changes the output by that share of one standard
  deviation. timm starts residual blocks with gamma = 0, which would give NaN.
* conv3d, linear, transposed conv3d and grouped transposed convolutions: `zaq_pt2e.fusion` folds
  BatchNorm before training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from zaq_pt2e._compat import HOST_BN_EPS, is_watcher, spare_folding
from zaq_pt2e.graph import (
    WEIGHTED,
    argument,
    constant_value,
    new_tensor,
    put_tensor,
    root_attribute,
    set_argument,
    tensor_at,
)
from zaq_pt2e.rewrites import BATCH_NORM

# ---- Surviving -----------------------------------------------------------------------------------

_aten = torch.ops.aten
SMALLEST_GAMMA = 1e-5


def batch_norms(model: GraphModule) -> list[Node]:
    """The BatchNorm nodes of an exported graph, in order.

    Their arguments are (input, gamma, beta, running mean, running var, training, momentum, eps,
    cudnn).
    """
    return [n for n in model.graph.nodes if n.op == "call_function" and n.target is BATCH_NORM]


def keeps_statistics(node: Node) -> bool:
    """Whether the BatchNorm keeps running statistics."""
    return all(isinstance(argument(node, i), Node) for i in (3, 4))


def own_tensors(model: GraphModule) -> None:
    """Give an exported graph parameters and buffers of its own: the user's model shares them.

    Tensors that were one stay one.
    """
    copies: dict[int, Tensor] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, value in table.items():
                if value is None:
                    continue
                if id(value) not in copies:
                    copy = value.detach().clone()
                    if isinstance(value, nn.Parameter):
                        copy = nn.Parameter(copy, requires_grad=value.requires_grad)
                    copies[id(value)] = copy
                table[name] = copies[id(value)]  # type: ignore[assignment]


def prepare_batch_norms(model: GraphModule) -> None:
    """Bring every BatchNorm with running statistics into the host's form; see the module's text."""
    shifted: dict[str, float] = {}
    for node in batch_norms(model):
        if not keeps_statistics(node):
            continue
        _add_affine(model, node)
        eps, target = float(node.args[7]), str(node.args[4].target)  # type: ignore[union-attr, arg-type]
        if eps != HOST_BN_EPS:
            var = tensor_at(model, target).detach() + (eps - HOST_BN_EPS)
            if target not in shifted:
                shifted[target] = eps
                put_tensor(model, target, var)
            elif shifted[target] != eps:  # one variance under two eps
                other = var - (shifted[target] - HOST_BN_EPS)
                set_argument(node, 4, new_tensor(model, target, other, node))
            set_argument(node, 7, HOST_BN_EPS)
        _clamp_gamma(model, str(node.args[1].target))  # type: ignore[union-attr]
    model.recompile()


def _add_affine(model: GraphModule, node: Node) -> None:
    mean = tensor_at(model, str(node.args[3].target))  # type: ignore[union-attr]
    prefix = str(node.args[3].target).removesuffix(".running_mean")  # type: ignore[union-attr]
    for position, name, make in ((1, "weight", torch.ones_like), (2, "bias", torch.zeros_like)):
        if argument(node, position) is None:
            value = make(mean)
            set_argument(node, position, new_tensor(model, f"{prefix}.{name}", value, node))


def _clamp_gamma(model: GraphModule, target: str) -> None:
    gamma = tensor_at(model, target)
    small = gamma.detach().abs() < SMALLEST_GAMMA
    if not bool(small.any()):
        return
    sign = torch.where(gamma < 0, -1.0, 1.0).to(gamma.dtype)
    with torch.no_grad():
        # In place: the tensor is the graph's own, and a parameter keeps its identity.
        gamma.copy_(torch.where(small, sign * SMALLEST_GAMMA, gamma))


def set_training(model: GraphModule, training: bool) -> GraphModule:
    """Switch BatchNorm and dropout of an exported or prepared model, in place.

    Unlike the host's ``move_exported_model_to_train`` and ``..._to_eval`` it keeps every node's
    name, eps and momentum, and it works on deep copies.

    Args:
        model: An exported, prepared or converted graph.
        training: True: batch statistics and active dropout; False: evaluation.

    Returns:
        The model.
    """
    switched = {BATCH_NORM: 5, _aten.dropout.default: 2, _aten.dropout_.default: 2}
    switched[_aten.feature_dropout.default] = 2
    for node in model.graph.nodes:
        position = switched.get(node.target) if node.op == "call_function" else None
        if position is None or (node.target is BATCH_NORM and not keeps_statistics(node)):
            continue
        set_argument(node, position, training)
    for module in model.modules():
        if is_watcher(module):  # ours look for breakpoints less often in training
            module.train(training)
    model.recompile()
    return model


# ---- Folding after training ----------------------------------------------------------------------
#
# For training the host writes a convolution with BatchNorm as
#
#     factor = gamma / sqrt(var + eps);  norm(conv(x, raw * factor) / factor [+ bias])
#
# and its own conversion takes that apart by comparing the graph with dozens of patterns, which
# takes minutes on large models, changes eps, and leaves unquantized layers in pieces. Here the same
# is done by following the nodes.

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
