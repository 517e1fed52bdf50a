"""Where NNCF put its quantizers, read from its graph: who feeds which layer."""

from __future__ import annotations

from typing import Any

from torch import nn

from zaq_nncf._compat import (
    HOOKS,
    BaseQuantizer,
    ConstantLayerAttributes,
    build_nncf_graph,
    constant_at,
    decode_hook_name,
    hooks_of,
    is_quantize_node,
    is_weighted,
)
from zaq_nncf.calibration import own


class Placement:
    """The quantizers of a model as nodes of NNCF's graph.

    Args:
        model: Quantized by NNCF; it runs once.
        example_input: A tensor, tuple or mapping that the model is called with.
    """

    def __init__(self, model: nn.Module, example_input: Any) -> None:
        self.graph = build_nncf_graph(model, own(example_input))
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
        hooks = []
        for identity, name in self.hooks.items():
            node = self.graph.get_node_by_id(identity)
            fed = self.graph.get_previous_nodes(node)
            if any(n.node_name in self.inputs for n in fed) or self._parameters_of(node):
                continue
            if self._reaches_layer(node):
                hooks.append(name)
        return hooks

    def _parameters_of(self, node: Any) -> list[str]:
        """The parameters that a value is computed from, and nothing else; empty for activations."""
        names: list[str] = []
        seen, stack = set(), [node]
        while stack:
            source = stack.pop()
            if source.node_id in seen:
                continue
            seen.add(source.node_id)
            before = self.graph.get_previous_nodes(source)
            if is_parameter(source):
                names.append(str(source.layer_attributes.name))
            elif not before:
                return []
            stack.extend(before)
        return sorted(name for name in names if HOOKS not in name)  # a quantizer has a scale

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

    def unread(self) -> list[str]:
        """Operators in place whose quantized value nobody reads: only what they wrote into is."""
        operators = []
        for identity, hook in self.hooks.items():
            kind, operator, _ = decode_hook_name(hook)
            name = "/".join(operator.split("/")[:-1]).rpartition("/")[2]  # none: the model's input
            quantizer = self.graph.get_node_by_id(identity)
            in_place = name.endswith("_") and not name.endswith("__")
            if kind == "post_hooks" and in_place and not self.graph.get_next_nodes(quantizer):
                operators.append(name)
        return operators

    def torn(self) -> dict[str, list[tuple[str, int]]]:
        """Hooks whose value layers multiply, and others (an addition, the output) only read.

        Returns:
            For each the weighted operators that read it, as (NNCF's name, port).
        """
        hooks: dict[str, list[tuple[str, int]]] = {}
        for name in self.multiplied():
            quantizer = next(i for i, hook in self.hooks.items() if hook == name)
            stack, seen = [self.graph.get_node_by_id(quantizer)], set()
            layers: list[tuple[str, int]] = []
            others = False
            while stack:
                node = stack.pop()
                for edge in self.graph.get_output_edges(node):
                    reader = edge.to_node
                    if is_weighted(reader):
                        layers.append((reader.node_name, edge.input_port_id))
                    elif not is_quantize_node(reader) and reader.node_id not in seen:
                        seen.add(reader.node_id)
                        if self._reaches_layer(reader):
                            stack.append(reader)
                        else:
                            others = True
            if others:
                hooks[name] = layers
        return hooks

    def weights(self) -> list[str]:
        """The parameters that ran as a weight of a convolution or matrix product."""
        weights: list[str] = []
        for node in self.graph.get_all_nodes():
            for edge in self.graph.get_input_edges(node) if is_weighted(node) else ():
                if edge.input_port_id in node.metatype.weight_port_ids:
                    name = self._constant_behind(node, edge.input_port_id)
                    if name is not None and name not in weights:
                        weights.append(name)
        return weights

    def computed(self) -> dict[str, str]:
        """Parameters that a multiplied weight was computed from, with the operator that did it."""
        operators: dict[str, str] = {}
        for node in self.graph.get_all_nodes():
            for edge in self.graph.get_input_edges(node) if is_weighted(node) else ():
                if edge.input_port_id not in node.metatype.weight_port_ids:
                    continue
                source = edge.from_node
                if self._constant_behind(node, edge.input_port_id) is None:
                    while is_quantize_node(source):
                        source = self.graph.get_previous_nodes(source)[0]
                    for name in self._parameters_of(source):
                        operators.setdefault(name, source.node_type)
        return operators

    def readers(self) -> dict[str, list[str]]:
        """The operators that read each parameter, quantizers left out; parameter name to types."""
        types: dict[str, list[str]] = {}
        for node in filter(is_parameter, self.graph.get_all_nodes()):
            stack, kinds = list(self.graph.get_next_nodes(node)), set()
            while stack:
                reader = stack.pop()
                if is_quantize_node(reader):
                    stack.extend(self.graph.get_next_nodes(reader))
                else:
                    kinds.add(reader.node_type)
            types[str(node.layer_attributes.name)] = sorted(kinds)
        return types

    def read_bare(self) -> set[str]:
        """The parameters that some operator reads without a quantizer of NNCF's hooks."""
        return {
            str(node.layer_attributes.name)
            for node in filter(is_parameter, self.graph.get_all_nodes())
            if any(n.node_id not in self.hooks for n in self.graph.get_next_nodes(node))
        }

    def parameters(self) -> dict[str, str]:
        """For each hook on a parameter the parameter's name."""
        names: dict[str, str] = {}
        for identity, name in self.hooks.items():
            for before in self.graph.get_previous_nodes(self.graph.get_node_by_id(identity)):
                if is_parameter(before) and HOOKS not in before.layer_attributes.name:
                    names[name] = str(before.layer_attributes.name)
        return names

    def biases(self) -> dict[str, str]:
        """For each hook on a layer's weight the name of the layer's bias, if it has one."""
        biases: dict[str, str] = {}
        for node in self.graph.get_all_nodes():
            port = getattr(node.metatype, "bias_port_id", None)
            if not is_weighted(node) or port is None:
                continue
            edges = {
                edge.input_port_id: edge.from_node for edge in self.graph.get_input_edges(node)
            }
            bias = edges.get(port)
            for weight_port in node.metatype.weight_port_ids:
                weight = edges.get(weight_port)
                hook = None if weight is None else self.hooks.get(weight.node_id)
                if hook is not None and bias is not None and is_parameter(bias):
                    biases[hook] = str(bias.layer_attributes.name)
        return biases

    def sources(self) -> dict[str, str]:
        """For each weight of a layer the hook on the layer's input; parameter name to hook."""
        hooks: dict[str, str] = {}
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
                    hooks[weight] = hook
        return hooks

    def _constant_behind(self, node: Any, port: int) -> str | None:
        source = next(
            e.from_node for e in self.graph.get_input_edges(node) if e.input_port_id == port
        )
        if not is_parameter(source) and not is_quantize_node(source):
            return None
        constant = constant_at(node, port, self.graph)
        return None if constant is None else str(constant.layer_attributes.name)

    def _hook_behind(self, node: Any) -> str | None:
        """The hook whose quantizer a value came from, through operators that keep its grid."""
        while node.node_id not in self.hooks:
            before = self.graph.get_previous_nodes(node)
            if is_weighted(node) or len(before) != 1:
                return None
            node = before[0]
        return self.hooks[node.node_id]


def is_parameter(node: Any) -> bool:
    """Whether a node of NNCF's graph is a parameter or a buffer."""
    return isinstance(node.layer_attributes, ConstantLayerAttributes)


def read_elsewhere(graph: Any, constant: Any) -> bool:
    """Whether a parameter is read by anything but operators whose weight it is.

    Args:
        graph: NNCF's, before quantizers are placed.
        constant: The parameter's node.
    """
    return any(
        edge.input_port_id not in getattr(edge.to_node.metatype, "weight_port_ids", ())
        for edge in graph.get_output_edges(constant)
    )
