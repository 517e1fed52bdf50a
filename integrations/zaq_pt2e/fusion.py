"""Folding BatchNorm into the layer in front of it, before anything is quantized.

The host folds whatever BatchNorm stands behind a convolution. It is wrong where others read the
convolution's output, where one weight is followed by several BatchNorms, and where a transposed
convolution has groups. So this is done here: every weight that takes a BatchNorm in is a tensor of
its own, and a BatchNorm that cannot be folded stays what it is, with the reason in the audit.

For training the host's patterns keep BatchNorm apart; what it has no pattern for is folded here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from zaq_plugin.ptq.fold_arithmetic import NormStatistics, folded_parameters
from zaq_pt2e.batch_norm import batch_norms, keeps_statistics
from zaq_pt2e.graph import (
    LINEAR,
    TRANSPOSED,
    WEIGHTED,
    add_note,
    argument,
    class_named,
    layers,
    module_stack,
    new_tensor,
    put_tensor,
    set_argument,
    tensor_at,
)

_aten = torch.ops.aten
_NO_QAT_PATTERN = (
    _aten.conv3d.default,
    _aten.conv3d.padding,
    _aten.conv_transpose3d.input,
    _aten.linear.default,
)
_NO_QAT_PATTERN_IN_GROUPS = (_aten.conv_transpose1d.default, _aten.conv_transpose2d.input)
_MODULES = (nn.modules.conv._ConvNd, nn.Linear)
_SHAPE = (_aten.sym_size.int, _aten.sym_numel.default)


@dataclass(frozen=True)
class _Pair:
    """A layer and the BatchNorm behind it, which is all that reads its output."""

    layer: Node
    norm: Node

    @property
    def weight(self) -> str:
        return _target(argument(self.layer, 1))

    @property
    def key(self) -> tuple[object, ...]:
        """Pairs with the same weight and the same key have the same folded weight and bias."""
        transposed = self.layer.target in TRANSPOSED
        groups = argument(self.layer, 6) if transposed else None
        norm = [_target(argument(self.norm, i)) for i in (1, 2, 3, 4)]
        bias = _target(argument(self.layer, 2))
        return (transposed, groups or 1, bias, *norm, float(argument(self.norm, 7)))


def fuse(model: GraphModule, *, training: bool) -> None:
    """Fold every BatchNorm that can be folded; why the others are not stands in the audit.

    Args:
        model: An exported graph, rewritten by `zaq_pt2e.rewrites.rewrite`; changed in place.
        training: Leave those to the host for which it has a pattern in training.
    """
    pairs, left = [], []
    for node in batch_norms(model):
        source = node.args[0]
        if not isinstance(source, Node) or source.target not in WEIGHTED:
            continue
        pair = _Pair(source, node)
        reason = _obstacle(pair, training)
        if reason is not None:
            add_note(source, norm=f"its BatchNorm stays float: {reason}")
        elif training and not _lacks_pattern(source):
            left.append(pair)
        else:
            pairs.append(pair)
    names = {layer.node: layer.name for layer in layers(model)}
    groups = _numbered(model, pairs)
    _name_apart([*groups, *_numbered(model, left)], names)
    _fold(model, groups, names)
    _read_apart(model, left)
    model.graph.eliminate_dead_code()
    model.recompile()


def _target(node: object) -> str:
    return str(node.target) if isinstance(node, Node) else ""


def _obstacle(pair: _Pair, training: bool) -> str | None:
    """Why a BatchNorm cannot be folded, or None."""
    layer, norm = pair.layer, pair.norm
    if not keeps_statistics(norm):
        return "it keeps no running statistics"
    read = [argument(layer, i) for i in (1, 2)] + [argument(norm, i) for i in (1, 2, 3, 4)]
    if any(n is not None and not (isinstance(n, Node) and n.op == "get_attr") for n in read):
        return "a weight, a bias or the BatchNorm's own tensors are no plain parameters"
    others = [u for u in layer.users if u is not norm]
    if any(training or u.target not in _SHAPE for u in others):
        return "the layer's output is used elsewhere, too"
    value = layer.meta.get("val")
    dims = 2 if layer.target in LINEAR else _dims(layer)
    if value is None and layer.target in LINEAR:
        return "the rank of the layer's output is not known"
    if isinstance(value, Tensor) and value.dim() != dims:
        return "it normalises another axis than the layer's outputs"
    return None


def _dims(layer: Node) -> int:
    operator: Any = layer.target
    return int(WEIGHTED[operator][-2]) + 2  # Conv2d: (N, C, H, W)


def _lacks_pattern(source: Node) -> bool:
    if source.target in _NO_QAT_PATTERN_IN_GROUPS:
        return (argument(source, 6) or 1) != 1
    return source.target in _NO_QAT_PATTERN


def _readers(model: GraphModule, target: str) -> set[Node]:
    """All that reads a tensor."""
    same = [n for n in model.graph.nodes if n.op == "get_attr" and n.target == target]
    return {user for node in same for user in node.users}


def _numbered(model: GraphModule, pairs: Iterable[_Pair]) -> list[tuple[list[_Pair], int]]:
    """Pairs that can share a weight, and which use of that weight they are, from 1.

    Who reads the weight otherwise comes first.
    """
    by_weight: dict[str, dict[tuple[object, ...], list[_Pair]]] = {}
    for pair in pairs:
        by_weight.setdefault(pair.weight, {}).setdefault(pair.key, []).append(pair)
    groups = []
    for weight, parts in by_weight.items():
        here = {pair.layer for members in parts.values() for pair in members}
        first = 2 if _readers(model, weight) - here else 1
        groups += [(members, number) for number, members in enumerate(parts.values(), first)]
    return groups


def _name_apart(groups: list[tuple[list[_Pair], int]], names: dict[Node, str]) -> None:
    """Names for the uses of one weight, which get levels of their own.

    Uses by tied layers have these layers' names; further ones by the same layer are numbered.
    """
    several = {members[0].weight for members, number in groups if number > 1}
    plain = several - {members[0].weight for members, number in groups if number == 1}
    owners: dict[str, int] = {}
    for members, number in groups:
        if members[0].weight not in several:
            continue
        for pair in members:
            old = names[pair.layer]
            name = _layer_path(pair.layer) or old
            if members[0].weight in plain:
                owners.setdefault(old, 1)  # who reads the weight without a BatchNorm
            original = name
            if owners.setdefault(name, number) != number:
                name = f"{name}.call_{number}"
            names[pair.layer] = name
            add_note(pair.layer, name=name, original=original)


def _layer_path(layer: Node) -> str | None:
    """Path of the module that is the layer, if one is."""
    path, kind = module_stack(layer)[-1] if module_stack(layer) else ("", "")
    cls = class_named(kind)
    return path if cls is not None and issubclass(cls, _MODULES) else None


def _read_apart(model: GraphModule, pairs: list[_Pair]) -> None:
    """A node of its own for every weight that the host replaces by ``raw * factor``.

    It does so in the annotations of all that read the node, of other layers, too.
    """
    for pair in pairs:
        weight = argument(pair.layer, 1)
        if len(weight.users) > 1:
            with model.graph.inserting_before(weight):
                own = model.graph.get_attr(pair.weight)
            own.meta = dict(weight.meta)
            set_argument(pair.layer, 1, own)


def _fold(
    model: GraphModule, groups: list[tuple[list[_Pair], int]], names: dict[Node, str]
) -> None:
    folded = []
    for members, number in groups:  # all from what was there before
        try:
            folded.append((members, number, *_folded(model, members[0])))
        except ValueError as error:
            for pair in members:
                add_note(pair.layer, norm=f"its BatchNorm stays float: {error}")
    for members, number, weight, bias in folded:
        here, name = [pair.layer for pair in members], names[members[0].layer]
        _store(model, here, 1, f"{name}.weight", weight, number == 1)
        old = _target(argument(here[0], 2))
        alone = bool(old) and _readers(model, old) <= set(here)
        _store(model, here, 2, f"{name}.bias", bias, alone)
        for pair in members:
            pair.norm.replace_all_uses_with(pair.layer)
            model.graph.erase_node(pair.norm)


def _store(
    model: GraphModule,
    members: list[Node],
    position: int,
    name: str,
    value: nn.Parameter,
    in_place: bool,
) -> None:
    """Let layers read a new tensor: under the old one's name, or under a new name."""
    old: Any = argument(members[0], position)
    if in_place:
        put_tensor(model, _target(old), value)
        return
    first = next(n for n in model.graph.nodes if n.op != "placeholder")
    fresh = new_tensor(model, name, value, first)
    if isinstance(old, Node):
        fresh.meta = dict(old.meta)
    for layer in members:
        set_argument(layer, position, fresh)


def _folded(model: GraphModule, pair: _Pair) -> tuple[nn.Parameter, nn.Parameter]:
    def read(node: object) -> Tensor | None:
        return tensor_at(model, _target(node)).detach() if isinstance(node, Node) else None

    gamma, beta, mean, var = (read(argument(pair.norm, i)) for i in (1, 2, 3, 4))
    weight = tensor_at(model, pair.weight)
    transposed, groups = pair.key[:2]
    new_weight, new_bias = folded_parameters(
        weight.detach(),
        read(argument(pair.layer, 2)),
        NormStatistics(mean, var, gamma, beta, float(argument(pair.norm, 7))),  # type: ignore[arg-type]
        transposed=bool(transposed),
        groups=int(groups),  # type: ignore[call-overload]
    )
    trains = weight.requires_grad
    return (
        nn.Parameter(new_weight, requires_grad=trains),
        nn.Parameter(new_bias, requires_grad=trains),
    )
