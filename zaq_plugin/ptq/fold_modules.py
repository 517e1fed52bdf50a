"""BatchNorm folding in a model of modules: finding pairs, proving them, replacing modules."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from zaq_plugin.errors import in_short
from zaq_plugin.graph import name_of_target
from zaq_plugin.layers import LAYERS, hooked, out_features
from zaq_plugin.ptq.computed_weights import random_input
from zaq_plugin.ptq.fold_arithmetic import (
    NormStatistics,
    fold_module,
    is_norm,
    norm_statistics,
    remainder,
)
from zaq_plugin.ptq.fold_graph import value_users
from zaq_plugin.ptq.wrappers import cloned

_EXPORT_LAYERS = ("conv1d", "conv2d", "conv3d", "conv_transpose", "convolution", "linear")


@dataclass(frozen=True)
class Pair:
    """A layer and the BatchNorm behind it by name, or why the BatchNorm has no layer to go to."""

    norm: str
    layer: str | None = None
    reason: str | None = None
    rank: int | None = None


class LayerTracer(fx.Tracer):
    """Keeps every convolution, linear layer and BatchNorm whole, subclasses included.

    Attributes:
        read: Parameters and buffers that something else than their own layer reads, by identity.
    """

    def __init__(self) -> None:
        super().__init__()
        self.read: set[int] = set()

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """As torch.fx, which calls it for every attribute of a module that is read."""
        if isinstance(attr_val, torch.Tensor):
            self.read.add(id(attr_val))
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def readable(self, model: nn.Module) -> set[str]:
        """Names of the modules that own a tensor that was read."""
        return {
            name
            for name, module in model.named_modules(remove_duplicate=False)
            for tensor in (*module._parameters.values(), *module._buffers.values())
            if tensor is not None and id(tensor) in self.read
        }

    def is_leaf_module(self, module: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one node of the graph."""
        read = self.read.copy()
        whole = isinstance(module, LAYERS) or is_norm(module)
        self.read = read  # what `is_norm` looked at, the model did not
        if whole:
            return True
        return super().is_leaf_module(module, module_qualified_name)


def find_pairs(model: nn.Module, example_inputs: Sequence[Any] | None) -> list[Pair]:
    """One entry per BatchNorm that the model calls, in order of execution.

    The model is traced by torch.fx; where that fails, ``torch.export`` is asked, for which the
    example inputs are needed.

    Raises:
        ValueError: If neither can follow the model.
    """
    tracer = LayerTracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:
        if example_inputs is None:
            raise ValueError(
                f"torch.fx cannot trace {type(model).__name__} ({in_short(error)}); give "
                "example_inputs, a tuple of the tensors that the model is called with, and "
                "torch.export is used instead"
            ) from error
        return _pairs_from_export(model, example_inputs, error)
    ranks = _linear_ranks(model, example_inputs)
    return _pairs_from_trace(model, graph, ranks, tracer.readable(model))


def _pairs_from_trace(
    model: nn.Module, graph: fx.Graph, ranks: dict[str, int], read: set[str]
) -> list[Pair]:
    modules = dict(model.named_modules())
    calls = Counter(str(n.target) for n in graph.nodes if n.op == "call_module")
    pairs = []
    for node in graph.nodes:
        name = str(node.target)
        if node.op != "call_module" or not is_norm(modules[name]):
            continue
        source = node.args[0] if node.args else None
        if calls[name] > 1:
            pairs.append(Pair(name, reason=f"{name!r} is called {calls[name]} times"))
            continue
        if not isinstance(source, fx.Node) or source.op != "call_module":
            pairs.append(Pair(name, reason=_no_layer(source)))
            continue
        layer = str(source.target)
        if not isinstance(modules[layer], LAYERS):
            pairs.append(Pair(name, reason=_no_layer(type(modules[layer]).__name__)))
        elif calls[layer] > 1:
            pairs.append(Pair(name, reason=f"{layer!r} is called {calls[layer]} times"))
        elif layer in read or name in read:
            which = layer if layer in read else name
            pairs.append(Pair(name, reason=_read_elsewhere(which)))
        elif len(value_users(source)) > 1:
            pairs.append(Pair(name, reason=_used_elsewhere(layer)))
        else:
            pairs.append(Pair(name, layer, rank=ranks.get(layer)))
    return pairs


def _no_layer(source: object) -> str:
    what = name_of_target(source.target if isinstance(source, fx.Node) else source)
    return f"its input is no convolution or linear layer but {what!r}"


def _used_elsewhere(layer: str) -> str:
    return f"the output of {layer!r} is also used elsewhere"


def _read_elsewhere(name: str) -> str:
    return f"a tensor of {name!r} is read elsewhere in the model"


def _linear_ranks(model: nn.Module, example_inputs: Sequence[Any] | None) -> dict[str, int]:
    """Number of output dimensions of every linear layer, by running the example inputs once."""
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    has_norm1d = any(isinstance(m, nn.BatchNorm1d | nn.SyncBatchNorm) for m in model.modules())
    if example_inputs is None or not linears or not has_norm1d:
        return {}
    ranks: dict[str, int] = {}

    def watch(name: str) -> Any:
        return lambda module, args, output: ranks.__setitem__(name, output.dim())

    handles = [m.register_forward_hook(watch(name)) for name, m in linears.items()]
    with hooked(handles), torch.no_grad():
        model(*cloned(example_inputs))
    return ranks


def _pairs_from_export(
    model: nn.Module, example_inputs: Sequence[Any], fx_error: Exception
) -> list[Pair]:
    try:
        program = torch.export.export(model, cloned(example_inputs), strict=False)
    except Exception as error:
        raise ValueError(
            f"neither torch.fx ({in_short(fx_error)}) nor torch.export "
            f"({in_short(error)}) can follow {type(model).__name__}; rewrite its "
            "data-dependent control flow, or fold its parts one by one"
        ) from error
    signature = program.graph_signature
    owner = {
        node: name.rpartition(".")[0]
        for node, name in {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
        }.items()
    }
    pairs = []
    norms = [n for n in program.graph.nodes if _op_name(n) == "batch_norm"]
    norm_calls = Counter(owner.get(str(n.args[3]), "") for n in norms)
    for node in norms:
        name = owner.get(str(node.args[3]), "")
        source = node.args[0]
        if node.args[3] is None:
            reason = "it keeps no running statistics (track_running_stats=False)"
            pairs.append(Pair(_called_module(node), reason=reason))
        elif not name:
            pairs.append(Pair(str(node), reason="its statistics belong to no module"))
        elif norm_calls[name] > 1:
            pairs.append(Pair(name, reason=f"{name!r} is called {norm_calls[name]} times"))
        elif not _op_name(source).startswith(_EXPORT_LAYERS):
            pairs.append(Pair(name, reason=_no_layer(source)))
        elif str(source.args[1]) not in owner:
            pairs.append(Pair(name, reason=f"the weight in front of it ({source}) is computed"))
        elif len(source.args[1].users) > 1:
            count = len(source.args[1].users)
            layer = owner[str(source.args[1])]
            pairs.append(Pair(name, reason=f"{layer!r} is called {count} times"))
        elif len(source.users) > 1:
            pairs.append(Pair(name, reason=_used_elsewhere(owner[str(source.args[1])])))
        elif any(
            isinstance(t, fx.Node) and len(t.users) > 1
            for t in (*node.args[1:5], *source.args[2:3])
        ):
            pairs.append(Pair(name, reason=_read_elsewhere(name)))
        else:
            rank = source.meta["val"].dim()
            pairs.append(Pair(name, owner[str(source.args[1])], rank=rank))
    return pairs


def _called_module(node: fx.Node) -> str:
    """The name of the module whose call a node comes from; the node's own if it has none."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1][0].removeprefix("L['self'].") if stack and stack[-1][0] else str(node)


def _op_name(node: Any) -> str:
    target = node.target if isinstance(node, fx.Node) else None
    return target._schema.name.split("::")[-1] if isinstance(target, torch._ops.OpOverload) else ""


def fold_pairs(
    model: nn.Module, pairs: Sequence[Pair]
) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Fold every pair that can be folded, in place.

    Returns:
        The folded ``(layer, norm)`` names, and for each BatchNorm that stays the reason.
    """
    folded: list[tuple[str, str]] = []
    reasons: dict[str, str] = {}
    names = {m: name for name, m in reversed(list(model.named_modules(remove_duplicate=False)))}
    modules = dict(model.named_modules(remove_duplicate=False))
    owners = Counter(id(p) for m in names for p in m._parameters.values() if p is not None)
    for pair in pairs:
        if pair.layer is None:
            reasons[pair.norm] = pair.reason or "unknown"
            continue
        layer, norm = modules.get(pair.layer), modules.get(pair.norm)
        outcome = _prepare(layer, norm, pair, owners)
        if isinstance(outcome, str):
            reasons[pair.norm] = outcome
            continue
        assert layer is not None  # _prepare has refused it
        assert norm is not None
        try:
            rest = _fold_one(layer, norm, outcome)
        except ValueError as error:
            raise ValueError(f"cannot fold {pair.norm!r} into {pair.layer!r}: {error}") from error
        if rest is None:
            kind = type(layer).__name__ if _own_forward(layer) else type(norm).__name__
            reasons[pair.norm] = (
                f"the forward of {kind} is not a plain layer's: folding would change it"
            )
            continue
        for alias, module in list(model.named_modules(remove_duplicate=False)):
            if module is norm:
                _replace(model, alias, rest)
        folded.append((pair.layer, pair.norm))
    for module, name in names.items():
        if is_norm(module) and name not in reasons and name not in {n for _, n in folded}:
            reasons[name] = "the model does not call it"
    return folded, reasons


def _prepare(
    layer: nn.Module | None, norm: nn.Module | None, pair: Pair, owners: Counter[int]
) -> NormStatistics | str:
    """The statistics to fold with, or the reason why this pair is left alone."""
    if layer is None or norm is None or not isinstance(layer, LAYERS):
        return f"the weight in front of it belongs to {type(layer).__name__}, which is not known"
    if not is_norm(norm):
        return f"its statistics belong to {type(norm).__name__}, which is no BatchNorm module"
    if parametrize.is_parametrized(layer):
        return (
            f"{pair.layer!r} has a parametrization (fold before quantizing or normalising weights)"
        )
    for module, name in ((layer, pair.layer), (norm, pair.norm)):
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{name!r} has forward hooks, which could tell the difference"
    if owners[id(layer.weight)] > 1:
        return f"the weight of {pair.layer!r} is shared with another module"
    if isinstance(layer, nn.Linear) and pair.rank != 2:
        if pair.rank is None:
            return f"{pair.layer!r} is Linear and its output's rank is unknown; give example_inputs"
        return f"{pair.layer!r} gives {pair.rank} dimensions, so the channels are not its features"
    stats = norm_statistics(norm)
    if isinstance(stats, str):
        return stats
    if stats.mean.numel() != out_features(layer):
        return f"it has {stats.mean.numel()} channels, {pair.layer!r} has {out_features(layer)}"
    return stats


def _own_forward(module: nn.Module) -> bool:
    """Whether a subclass may compute something else, so that the fold must be proved."""
    module_type = type(module)
    return not module_type.__module__.startswith("torch.nn.modules.")


def _fold_one(layer: nn.Module, norm: nn.Module, stats: NormStatistics) -> nn.Module | None:
    """Fold in place; gives what replaces the BatchNorm, or None where folding would be wrong."""
    rest = remainder(norm)
    if not (_own_forward(layer) or _own_forward(norm)):
        fold_module(layer, stats)
        return rest
    trial = copy.deepcopy(layer)
    fold_module(trial, stats)
    with torch.no_grad():
        x = random_input(layer)
        expected, actual = norm(layer(x)), rest(trial(x))
    tolerance = 1e-4 if expected.dtype in (torch.float32, torch.float64) else 3e-2
    limit = tolerance * max(float(expected.abs().max()), 1e-12)
    if expected.shape != actual.shape or not float((expected - actual).abs().max()) <= limit:
        return None
    fold_module(layer, stats)
    return rest


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
