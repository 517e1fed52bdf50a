"""A batch through a prepared graph, node by node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node, map_arg

from zaq_plugin.student import QuantLayer
from zaq_plugin.student.batches import Call
from zaq_plugin.student.fake_quantizers import is_fake_quantizer
from zaq_plugin.student.view import Before
from zaq_pt2e._compat import is_watcher
from zaq_pt2e.bias import InputMean
from zaq_pt2e.graph import argument, constant_value, tensor_at


class Interpreter:
    """Runs a batch through the graph node by node, as the converted model would.

    Fake-quantizers do what they are switched to; the host's own observers, which have no switch,
    quantize by the ranges that they have seen.

    Args:
        model: A prepared graph.
        by_node: The quantized layers by their operators.
        call: The batch.
    """

    def __init__(self, model: GraphModule, by_node: Mapping[Node, QuantLayer], call: Call) -> None:
        self.model, self.by_node = model, by_node
        self.inputs = iter(_flat_inputs(model, call))
        self.by_quantizer = {id(x.quantizer): x for x in self.by_node.values()}
        self.values: dict[Node, Any] = {}

    def run(self, before: Before) -> Any:
        """The model's flat outputs."""
        nodes = list(self.model.graph.nodes)
        last = {used: node for node in nodes for used in node.all_input_nodes}
        for node in nodes:
            if node.op == "output":
                return map_arg(node.args[0], self._value)
            if node.op == "placeholder":
                self.values[node] = next(self.inputs)
            elif node.op == "call_module":
                module = self.model.get_submodule(str(node.target))
                self.values[node] = self._watched(module, node)
            elif node.op != "get_attr":
                layer = self._layer(node)
                if layer is not None:
                    before(layer, self._value(node.args[0]))
                    self._refresh(argument(node, 1))
                self.values[node] = self._call(node)
            for used in node.all_input_nodes:
                if last.get(used) is node:
                    self.values.pop(used, None)
        return None

    def _layer(self, node: Node) -> QuantLayer | None:
        """The layer of an operator; of a later call of the same layer, too."""
        if node in self.by_node:
            return self.by_node[node]
        quantizer = argument(node, 1)
        if not isinstance(quantizer, Node) or quantizer.op != "call_module":
            return None
        return self.by_quantizer.get(id(self.model.get_submodule(str(quantizer.target))))

    def _refresh(self, quantizer: object) -> None:
        """The weight anew: a layer may have been changed the moment before it runs."""
        if isinstance(quantizer, Node) and quantizer in self.values:
            module: Any = self.model.get_submodule(str(quantizer.target))
            self.values[quantizer] = module(self._constant(quantizer.args[0]))

    def _constant(self, node: object) -> Tensor:
        value = constant_value(self.model, node)
        assert value is not None
        return value

    def _call(self, node: Node) -> Any:
        args, kwargs = map_arg((node.args, dict(node.kwargs)), self._value)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _value(self, node: Any) -> Any:
        if node.op == "get_attr":  # read now: whoever is told of a layer may change them
            return tensor_at(self.model, str(node.target))
        return self.values[node]

    def _watched(self, module: Any, node: Node) -> Any:
        """What stands in an observer's place after conversion."""
        if isinstance(module, InputMean) or not is_watcher(module):
            return None  # the host's guards
        x = self._value(node.args[0])
        if is_fake_quantizer(module):
            return module(x)
        if getattr(module, "quant_min", None) is None:
            return x
        scale, zero_point = module.calculate_qparams()
        low, high = module.quant_min, module.quant_max
        if scale.numel() > 1:
            return torch.fake_quantize_per_channel_affine(
                x, scale, zero_point.int(), int(module.ch_axis), low, high
            )
        return torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero_point), low, high)


def _flat_inputs(model: GraphModule, call: Call) -> list[Any]:
    """One value for each placeholder.

    Raises:
        ValueError: names or number of the inputs are not the graph's.
    """
    names = [str(n.target) for n in model.graph.nodes if n.op == "placeholder"]
    args, kwargs = call
    values = list(args) + [kwargs[n] for n in names[len(args) :] if n in kwargs]
    flat = list(torch.utils._pytree.tree_leaves(values))
    if len(flat) != len(names) or set(kwargs) - set(names):
        labels = [*(f"input {i}" for i in range(len(args))), *kwargs]
        raise ValueError(f"the graph's inputs are {names}; a batch has {labels}")
    return flat
