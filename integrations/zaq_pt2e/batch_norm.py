"""Making BatchNorm survive the host's quantization-aware training.

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

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from zaq_pt2e._compat import HOST_BN_EPS, is_watcher
from zaq_pt2e.graph import argument, new_tensor, put_tensor, set_argument, tensor_at
from zaq_pt2e.rewrites import BATCH_NORM

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
