"""Which layer feeds which: a model as a graph of layers, and pairs that can be equalised.

Two layers are connected if nothing stands between them but what commutes with a positive factor per
channel: ReLU, pooling, dropout, flattening, zero padding. ReLU6 commutes if its bound is scaled,
too.
"""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from zaq_plugin.layers import LAYERS
from zaq_plugin.ptq.bounded import BoundedReLU
from zaq_plugin.ptq.fold_graph import value_users
from zaq_plugin.ptq.fold_modules import LayerTracer
from zaq_plugin.ptq.unlift import restore_layers

Between = Literal["relu", "relu6", "none"]

_IDENTITY = {"identity", "dropout", "dropout2d", "contiguous", "clone", "alias", "detach"}
_POOLS = {"max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"}
_FLAT = {"flatten", "view", "reshape", "squeeze"}


@dataclass(frozen=True)
class Connection:
    """Two layers, one behind the other.

    Attributes:
        first, second: Qualified names of the layers.
        between: The activation between them.
        bound: Name of the graph's node of a ReLU6; None without one.
    """

    first: str
    second: str
    between: Between
    bound: str | None = None


class _Tracer(LayerTracer):
    """Keeps bounded activations whole as well."""

    def is_leaf_module(self, module: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one node of the graph."""
        return isinstance(module, BoundedReLU) or super().is_leaf_module(
            module, module_qualified_name
        )


def layer_graph(model: nn.Module, example_inputs: Sequence[Any] | None = None) -> fx.GraphModule:
    """The model as a graph whose layers are modules under the names that they have in the model.

    Traced by torch.fx, in which case layers are the model's own; where that fails, exported.

    Raises:
        ValueError: If neither can follow the model.
    """
    try:
        return fx.GraphModule(model, _Tracer().trace(model))
    except Exception as error:
        first = f"{type(error).__name__}: {error}".splitlines()[0]
    if example_inputs is None:
        raise ValueError(
            f"torch.fx cannot trace {type(model).__name__} ({first}); give example_inputs, and "
            "torch.export is used instead"
        )
    try:
        program = torch.export.export(copy.deepcopy(model), tuple(example_inputs), strict=False)
        restored = restore_layers(program.module(), inplace=True)
        return fx.GraphModule(restored, restored.graph)  # one whose mode can be set
    except Exception as error:
        raise ValueError(
            f"neither torch.fx ({first}) nor torch.export ({type(error).__name__}: {error}) can "
            f"follow {type(model).__name__}"
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
        name = getattr(target, "__name__", str(target))
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


def over_positions(node: fx.Node) -> bool:
    """Whether a mean is taken over the positions of an image batch, and nothing else."""
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    listed = tuple(dims) if isinstance(dims, list | tuple) else (dims,)
    return set(listed) in ({2, 3}, {-1, -2})


def zero_padding(node: fx.Node) -> tuple[int, ...] | None:
    """The widths of a padding with zeros, last axis first; None for any other padding."""
    args = dict(zip(("input", "pad", "mode", "value"), node.args, strict=False))
    args.update(node.kwargs)
    mode, value = args.get("mode", "constant"), args.get("value", 0)
    if isinstance(mode, int | float):  # aten.constant_pad_nd(x, pad, value)
        mode, value = "constant", mode
    widths: Any = args.get("pad")
    if mode != "constant" or value not in (0, None) or not isinstance(widths, list | tuple):
        return None
    return tuple(int(w) for w in widths)


def connections(graph: fx.GraphModule) -> tuple[list[Connection], dict[str, str]]:
    """Every pair of connected layers, in order, and for each other layer why it leads to none."""
    calls = Counter(str(n.target) for n in graph.graph.nodes if n.op == "call_module")
    owners = Counter(
        id(p) for m in graph.modules() for p in m._parameters.values() if p is not None
    )

    def blocked(name: str) -> str | None:
        layer = graph.get_submodule(name)
        if calls[name] > 1:
            return f"{name!r} is called {calls[name]} times"
        if parametrize.is_parametrized(layer):
            return f"{name!r} has a parametrization"
        weight = layer.weight
        if isinstance(weight, Tensor) and owners[id(weight)] > 1:
            return f"the weight of {name!r} is shared"
        return None

    found: list[Connection] = []
    reasons: dict[str, str] = {}
    for node in graph.graph.nodes:
        if node.op != "call_module" or kind_of(graph, node) != "layer":
            continue
        name = str(node.target)
        outcome = blocked(name) or _follow(graph, node)
        if isinstance(outcome, Connection):
            outcome = blocked(outcome.second) or outcome
        if isinstance(outcome, Connection):
            found.append(outcome)
        else:
            reasons[name] = outcome
    return found, reasons


def _follow(graph: fx.GraphModule, start: fx.Node) -> Connection | str:
    node, between, bound = start, "none", None
    while True:
        users = value_users(node)
        if len(users) != 1:
            return f"its output is used {len(users)} times"
        node = users[0]
        kind = kind_of(graph, node)
        if kind == "layer":
            second = str(node.target)
            return Connection(str(start.target), second, between, bound)  # type: ignore[arg-type]
        if kind in ("relu6", "bounded"):
            if bound is not None:
                return "two bounded activations stand behind it"
            between, bound = "relu6", node.name
        elif kind == "relu":
            between = "relu" if between == "none" else between
        elif kind == "mean" and not over_positions(node):
            return "a mean over other axes than positions stands behind it"
        elif kind == "pad":
            widths = zero_padding(node)
            if widths is None or len(widths) > 4:
                return "a padding that is not by zeros at the border stands behind it"
        elif kind == "output":
            return "its output is the model's"
        elif kind not in ("identity", "pool", "flatten", "mean"):
            return f"{kind!r} stands behind it"
