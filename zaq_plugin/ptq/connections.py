"""Which layer feeds which: a model as a graph of layers, and pairs that can be equalised.

Two layers are connected if nothing stands between them but what commutes with a positive factor per
channel: ReLU, pooling, dropout, flattening, zero padding. ReLU6 commutes if its bound is scaled,
too. Where the channels go meanwhile is followed (`channel_axis`): a pair is left alone if they end
up elsewhere than where the second layer sums over them.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils import parametrize

from zaq_plugin.graph import name_of_target
from zaq_plugin.layers import LAYERS
from zaq_plugin.ptq.bake import copied
from zaq_plugin.ptq.channel_axis import Axis, behind, behind_layer, features, shape_of
from zaq_plugin.ptq.channels import BoundedReLU, is_rescalable
from zaq_plugin.ptq.fold_graph import value_users
from zaq_plugin.ptq.fold_modules import LayerTracer
from zaq_plugin.ptq.unlift import restore_layers
from zaq_plugin.ptq.wrappers import cloned

Between = Literal["relu", "relu6", "none"]

_IDENTITY = {"identity", "dropout", "dropout2d", "contiguous", "clone", "alias", "detach"}
_POOLS = {"max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"}
_FLAT = {"flatten", "view", "reshape", "squeeze"}
_COMMUTING = {"relu", "relu6", "bounded", "identity", "pool", "flatten", "mean", "pad"}


@dataclass(frozen=True)
class Connection:
    """Two layers, one behind the other.

    Attributes:
        first, second: Qualified names of the layers.
        between: The activation between them.
        bound: Name of the graph's node of a ReLU6; None without one.
        index: The first layer's channel that each input feature of the second one holds.
        bound_axis: Axis of the channels where the ReLU6 stands.
    """

    first: str
    second: str
    between: Between
    bound: str | None = None
    index: Tensor = field(default_factory=lambda: torch.empty(0), compare=False, repr=False)
    bound_axis: int = field(default=1, compare=False, repr=False)


class _Tracer(LayerTracer):
    """Keeps bounded activations whole as well."""

    def is_leaf_module(self, module: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one node of the graph."""
        return isinstance(module, BoundedReLU) or super().is_leaf_module(
            module, module_qualified_name
        )


def layer_graph(model: nn.Module, example_inputs: Sequence[Any] | None = None) -> fx.GraphModule:
    """The model as a graph whose layers are modules under the names that they have in the model.

    Traced by torch.fx, in which case layers are the model's own; where that fails, exported. With
    example inputs its nodes know their shapes.

    Raises:
        ValueError: If neither can follow the model, or it does not run on the example inputs.
    """
    try:
        traced = fx.GraphModule(model, _Tracer().trace(model))
    except Exception as error:
        first = f"{type(error).__name__}: {error}".splitlines()[0]
    else:
        if example_inputs is not None:
            _note_shapes(model, traced, example_inputs)
        return traced
    if example_inputs is None:
        raise ValueError(
            f"torch.fx cannot trace {type(model).__name__} ({first}); give example_inputs, and "
            "torch.export is used instead"
        )
    try:
        program = torch.export.export(copied(model), cloned(example_inputs), strict=False)
        restored = restore_layers(program.module(), inplace=True)
        return fx.GraphModule(restored, restored.graph)  # one whose mode can be set
    except Exception as error:
        raise ValueError(
            f"neither torch.fx ({first}) nor torch.export ({type(error).__name__}: {error}) can "
            f"follow {type(model).__name__}"
        ) from error


def _note_shapes(model: nn.Module, graph: fx.GraphModule, example_inputs: Sequence[Any]) -> None:
    try:
        with torch.no_grad():
            ShapeProp(graph).propagate(*cloned(example_inputs))
    except Exception as error:
        raise ValueError(
            f"{type(model).__name__} does not run on the example inputs "
            f"({type(error).__name__}: {error}); give a tuple of the tensors that it is called with"
        ) from error


def kind_of(graph: fx.GraphModule, node: fx.Node) -> str:
    """What a node does, in one word: ``layer``, ``relu``, ``relu6``, ``bounded``, ``identity``,
    ``pool``, ``flatten``, ``mean``, ``add``, ``cat``, ``pad``, ``slice``, or the operator's name.
    """
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        if isinstance(module, LAYERS):
            return "layer"
        if isinstance(module, BoundedReLU):
            return "bounded"
        if isinstance(module, nn.Hardtanh) and not isinstance(module, nn.ReLU6):
            return "relu6" if (module.min_val, module.max_val) == (0, 6) else "hardtanh"
        name = type(module).__name__.lower()
        return _word({"maxpool2d": "max_pool2d", "avgpool2d": "avg_pool2d"}.get(name, _snake(name)))
    if node.op == "call_method":
        return _word(str(node.target).rstrip("_"))
    if node.op != "call_function":
        return node.op
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        name = target._schema.name.split("::")[-1]
    else:
        name = name_of_target(target)
    name = name.rstrip("_")
    if name == "hardtanh" and tuple(node.args[1:3]) == (0, 6):
        return "relu6"
    if name == "getitem" and target is not operator.getitem:
        return "other"
    return _word(name)


def _snake(name: str) -> str:
    return name.replace("adaptiveavgpool2d", "adaptive_avg_pool2d").replace(
        "adaptivemaxpool2d", "adaptive_max_pool2d"
    )


def _word(name: str) -> str:
    if name in _IDENTITY:
        return "identity"
    if name in _POOLS:
        return "pool"
    if name in _FLAT:
        return "flatten"
    return {"iadd": "add", "getitem": "slice", "concat": "cat", "constant_pad_nd": "pad"}.get(
        name, name
    )


def connections(graph: fx.GraphModule) -> tuple[list[Connection], dict[str, str]]:
    """Every pair of connected layers, in order, and for each other layer why it leads to none."""
    calls = Counter(str(n.target) for n in graph.graph.nodes if n.op == "call_module")
    owners = Counter(
        id(p) for m in graph.modules() for p in m._parameters.values() if p is not None
    )

    read = {str(n.target).rpartition(".")[0] for n in graph.graph.nodes if n.op == "get_attr"}

    def blocked(name: str) -> str | None:
        layer = graph.get_submodule(name)
        if name in read:
            return f"a tensor of {name!r} is read elsewhere in the model"
        if layer._forward_hooks or layer._forward_pre_hooks:
            return f"{name!r} has forward hooks, which could tell the difference"
        if not is_rescalable(layer):
            return f"the forward of {type(layer).__name__} does not pass a factor per channel on"
        if calls[name] > 1:
            return f"{name!r} is called {calls[name]} times"
        if parametrize.is_parametrized(layer):
            return f"{name!r} has a parametrization"
        weight = layer.weight
        if isinstance(weight, Tensor) and owners[id(weight)] > 1:
            return f"the weight of {name!r} is shared"
        return None

    outcomes: list[Connection] = []
    reasons: dict[str, str] = {}
    for node in graph.graph.nodes:
        if node.op != "call_module" or kind_of(graph, node) != "layer":
            continue
        name = str(node.target)
        outcome = blocked(name) or _follow(graph, node)
        if isinstance(outcome, Connection):
            outcome = blocked(outcome.second) or outcome
        if isinstance(outcome, Connection):
            outcomes.append(outcome)
        else:
            reasons[name] = outcome
    return outcomes, reasons


def _follow(graph: fx.GraphModule, start: fx.Node) -> Connection | str:
    node, between, bound = start, "none", None
    where = behind_layer(graph.get_submodule(str(start.target)), shape_of(start))
    bound_axis = 1
    while True:
        users = value_users(node)
        if len(users) != 1:
            return f"its output is used {len(users)} times"
        node = users[0]
        kind = kind_of(graph, node)
        if kind == "layer":
            second = str(node.target)
            index = features(where, graph.get_submodule(second))
            if isinstance(index, str):
                return index
            first = str(start.target)
            return Connection(first, second, between, bound, index, bound_axis)  # type: ignore[arg-type]
        if kind == "output":
            return "its output is the model's"
        if kind not in _COMMUTING:
            return f"{kind!r} stands behind it"
        if kind in ("relu6", "bounded"):
            if bound is not None:
                return "two bounded activations stand behind it"
            axis = _bound_axis(graph, node, kind, where)
            if axis is None:
                return "a bounded activation whose channels are on another axis stands behind it"
            between, bound, bound_axis = "relu6", node.name, axis
        elif kind == "relu":
            between = "relu" if between == "none" else between
        outcome = behind(node, kind, where)
        if isinstance(outcome, str):
            return outcome
        where = outcome


def _bound_axis(graph: fx.GraphModule, node: fx.Node, kind: str, where: Axis) -> int | None:
    """The axis of the bounds of a bounded activation at a node; None if it cannot have one each."""
    if not where.plain:
        return None
    axis = -1 if where.axis in (-1, (where.rank or 0) - 1) else where.axis
    if kind != "bounded":
        return axis
    bound: Any = graph.get_submodule(str(node.target))
    rank = where.rank
    same = bound.axis == axis or (rank is not None and bound.axis % rank == where.axis)
    return int(bound.axis) if same else None
