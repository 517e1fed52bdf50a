"""Where NNCF put its quantizers, read from its graph: who feeds which layer."""

from __future__ import annotations

from typing import Any

from torch import nn

from zaq_nncf._compat import (
    BaseQuantizer,
    build_nncf_graph,
    decode_hook_name,
    get_const_node,
    hooks_of,
    is_quantize_node,
    is_weighted,
)


class Placement:
    """The quantizers of a model as nodes of NNCF's graph.

    Args:
        model: Quantized by NNCF; it runs once.
        example_input: A tensor, tuple or mapping that the model is called with.
    """

    def __init__(self, model: nn.Module, example_input: Any) -> None:
        self.graph = build_nncf_graph(model, example_input)
        self.inputs = {node.node_name for node in self.graph.get_input_nodes()}
        self.hooks: dict[int, str] = {}
        for name, module in hooks_of(model).named_hooks(remove_duplicate=False):
            if isinstance(module, BaseQuantizer):
                self.hooks[self._node_of(name).node_id] = name

    def _node_of(self, hook: str) -> Any:
        """The node that a hook makes."""
        kind, operator, port = decode_hook_name(hook)
        node = self.graph.get_node_by_name(operator)
        if kind == "pre_hooks":
            edges = self.graph.get_input_edges(node)
            return next(e.from_node for e in edges if e.input_port_id == port)
        return next(n for n in self.graph.get_next_nodes(node) if is_quantize_node(n))

    def multiplied(self) -> list[str]:
        """Hooks on activations that a convolution or matrix product reads.

        Those on the model's own inputs are left out.
        """
        found = []
        for identity, name in self.hooks.items():
            node = self.graph.get_node_by_id(identity)
            fed = self.graph.get_previous_nodes(node)
            if any(n.node_name in self.inputs for n in fed) or self._is_constant(node):
                continue
            if self._reaches_layer(node):
                found.append(name)
        return found

    def _is_constant(self, node: Any) -> bool:
        return all(self._is_parameter(n) for n in self.graph.get_previous_nodes(node))

    @staticmethod
    def _is_parameter(node: Any) -> bool:
        return hasattr(node.layer_attributes, "name") and hasattr(node.layer_attributes, "shape")

    def _reaches_layer(self, node: Any) -> bool:
        """Whether a weighted operator reads this node's value before another quantizer does."""
        seen, stack = set(), list(self.graph.get_next_nodes(node))
        while stack:
            reader = stack.pop()
            if reader.node_id in seen or is_quantize_node(reader):
                continue
            seen.add(reader.node_id)
            if is_weighted(reader):
                return True
            stack.extend(self.graph.get_next_nodes(reader))
        return False

    def weights(self) -> list[str]:
        """The parameters that ran as a weight of a convolution or matrix product."""
        found: list[str] = []
        for node in self.graph.get_all_nodes():
            for edge in self.graph.get_input_edges(node) if is_weighted(node) else ():
                if edge.input_port_id in node.metatype.weight_port_ids:
                    name = self._constant_behind(node, edge.input_port_id)
                    if name is not None and name not in found:
                        found.append(name)
        return found

    def biases(self) -> dict[str, str]:
        """For each hook on a layer's weight the name of the layer's bias, if it has one."""
        found: dict[str, str] = {}
        for node in self.graph.get_all_nodes():
            port = getattr(node.metatype, "bias_port_id", None)
            if not is_weighted(node) or port is None:
                continue
            edges = {
                edge.input_port_id: edge.from_node for edge in self.graph.get_input_edges(node)
            }
            bias = edges.get(port)
            for weight_port in node.metatype.weight_port_ids:
                hook = self.hooks.get(getattr(edges.get(weight_port), "node_id", -1))
                if hook is not None and bias is not None and self._is_parameter(bias):
                    found[hook] = str(bias.layer_attributes.name)
        return found

    def sources(self) -> dict[str, str]:
        """For each weight of a layer the hook on the layer's input; parameter name to hook."""
        found: dict[str, str] = {}
        for node in self.graph.get_all_nodes():
            if not is_weighted(node):
                continue
            weights, hook = [], None
            for edge in self.graph.get_input_edges(node):
                constant = None
                if edge.input_port_id in node.metatype.weight_port_ids:
                    constant = self._constant_behind(node, edge.input_port_id)
                if constant is not None:
                    weights.append(constant)
                elif edge.input_port_id == 0:
                    hook = self._hook_behind(edge.from_node)
            for weight in weights:
                if hook is not None:
                    found[weight] = hook
        return found

    def _constant_behind(self, node: Any, port: int) -> str | None:
        source = next(
            e.from_node for e in self.graph.get_input_edges(node) if e.input_port_id == port
        )
        if not self._is_parameter(source) and not self._is_constant(source):
            return None
        constant = get_const_node(node, port, self.graph)
        return None if constant is None else str(constant.layer_attributes.name)

    def _hook_behind(self, node: Any) -> str | None:
        """The hook whose quantizer a value came from, through operators that keep its grid."""
        while node.node_id not in self.hooks:
            before = self.graph.get_previous_nodes(node)
            if is_weighted(node) or len(before) != 1:
                return None
            node = before[0]
        return self.hooks[node.node_id]
