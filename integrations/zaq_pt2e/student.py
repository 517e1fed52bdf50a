"""Students of torchao's PT2E: exported graphs with fake-quantizers between their nodes."""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from zaq_plugin.fake_quantize import PWLQPerChannelFakeQuantize
from zaq_plugin.student import QuantLayer, Student, register_student
from zaq_plugin.student.batches import Call
from zaq_plugin.student.fake_quantizers import Slot, is_fake_quantizer
from zaq_plugin.student.recording import Passes, graph_passes
from zaq_plugin.student.view import Before
from zaq_pt2e._compat import is_watcher
from zaq_pt2e.batch_norm import FusedNorm, batch_norms, fused_norm, set_training
from zaq_pt2e.graph import (
    CONVOLUTIONS,
    LINEAR,
    argument,
    constant_value,
    layers,
    root_attribute,
    tensor_at,
)
from zaq_pt2e.interpreter import Interpreter


class GraphLayer(QuantLayer):
    """A convolution or linear operator whose weight passes a fake-quantizer of ours.

    Attributes:
        node: The operator's.
        source: What feeds the fake-quantizer: the weight, or in training the weight times
            BatchNorm's factor.
        norm: The BatchNorm that goes with such a product.
    """

    def __init__(self, name: str, model: GraphModule, node: Node, quantizer: Node) -> None:
        target = str(quantizer.target)
        parent, _, attribute = target.rpartition(".")
        slot = Slot(target, model.get_submodule(parent), attribute, model.get_submodule(target))
        self.model, self.node, self.source = model, node, quantizer.args[0]
        self.norm: FusedNorm | None = fused_norm(node, self.source)
        super().__init__(name, None, slot)
        self.plain = plain_layer(node, self.parameter)

    @property
    def parameter(self) -> nn.Parameter:
        """The tensor behind the fake-quantizer."""
        tensor = tensor_at(self.model, str(root_attribute(self.source)))
        assert isinstance(tensor, nn.Parameter)
        return tensor

    @property
    def weight(self) -> Tensor:
        """See `QuantLayer.weight`."""
        value = constant_value(self.model, self.source)
        assert value is not None
        return value

    @torch.no_grad()
    def write(self, values: Tensor) -> None:
        """See `QuantLayer.write`; where BatchNorm's factor is 0 there is nothing to write."""
        if self.norm is None:
            super().write(values)
            return
        gamma, var = (tensor_at(self.model, self._of_norm(i)) for i in (1, 4))
        factor = gamma / torch.sqrt(var + float(argument(self.norm.norm, 7)))
        shape = [1] * values.dim()
        shape[self.axis or 0] = -1
        scaled = factor.reshape(shape).to(values)
        parameter = self.parameter
        parameter.copy_(torch.where(scaled == 0, parameter, (values / scaled).to(parameter)))

    @property
    def bias(self) -> Tensor | None:
        """The operator's bias, or the shift of the BatchNorm that follows it in training."""
        if self.norm is not None:
            return tensor_at(self.model, self._of_norm(2))
        node = argument(self.node, 2)
        constant = isinstance(node, Node) and node.op == "get_attr"
        return tensor_at(self.model, str(node.target)) if constant else None

    def _of_norm(self, position: int) -> str:
        assert self.norm is not None
        node: Any = argument(self.norm.norm, position)
        return str(node.target)


def plain_layer(node: Node, weight: Tensor) -> nn.Module:
    """The module of torch that computes what an operator does; its tensors hold nothing."""
    kinds: dict[Any, str] = {**CONVOLUTIONS, **LINEAR}
    name = kinds.get(node.target)
    if name == "Linear":
        return nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    rank = weight.dim() - 2

    def sizes(position: int, default: int) -> tuple[int, ...] | str:
        value = argument(node, position)
        if isinstance(value, str):
            return value
        value = [default] if value is None else list(value)
        return tuple(value if len(value) == rank else value * rank)

    kernel = tuple(weight.shape[2:])
    if name is not None:
        groups = int(argument(node, 6) or 1)
        kind: Any = getattr(nn, name)
        layer: nn.Module = kind(
            weight.shape[1] * groups, weight.shape[0], kernel, sizes(3, 1), sizes(4, 0),
            sizes(5, 1), groups, device="meta",
        )  # fmt: skip
        return layer
    groups = int(argument(node, 6) or 1)
    transposed: Any = getattr(nn, f"ConvTranspose{rank}d")
    flipped: nn.Module = transposed(
        weight.shape[0], weight.shape[1] * groups, kernel, sizes(3, 1), sizes(4, 0), sizes(5, 0),
        groups, True, sizes(7, 1), device="meta",
    )  # fmt: skip
    return flipped


class PT2EStudent(Student):
    """A model from prepare_pt2e or prepare_qat_pt2e with weights of ours."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        if not isinstance(model, GraphModule):
            raise TypeError(f"expected a GraphModule of torch.fx; got {type(model).__name__}")
        self.prepared = model

    def layers(self) -> dict[str, QuantLayer]:
        """Layers in order of execution; one that is called twice is there once."""
        by_name: dict[str, QuantLayer] = {}
        for layer in layers(self.prepared):
            quantizer = argument(layer.node, 1)
            if layer.name in by_name or not self._is_ours(quantizer):
                continue
            by_name[layer.name] = GraphLayer(layer.name, self.prepared, layer.node, quantizer)
        return by_name

    def _by_node(self) -> dict[Node, QuantLayer]:
        return {x.node: x for x in self.layers().values() if isinstance(x, GraphLayer)}

    def _is_ours(self, node: object) -> bool:
        if not isinstance(node, Node) or node.op != "call_module":
            return False
        module = self.prepared.get_submodule(str(node.target))
        return isinstance(module, PWLQPerChannelFakeQuantize)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """See `Student.evaluating`; BatchNorm's and dropout's modes are in the graph."""
        training = any(bool(argument(node, 5)) for node in batch_norms(self.prepared))
        set_training(self.prepared, False)
        try:
            with torch.no_grad():
                yield
        finally:
            if training:
                set_training(self.prepared, True)

    def run(self, call: Call, before: Before | None = None) -> Any:
        """See `Student.run`."""
        if before is None:
            return self.prepared(*call[0], **call[1])
        return Interpreter(self.prepared, self._by_node(), call).run(before)

    def passes_of(self, model: nn.Module, call: Call) -> Passes:
        """See `Student.passes_of`; the layers of a graph are its nodes."""
        if not isinstance(model, GraphModule) or not any(True for _ in layers(model)):
            return super().passes_of(model, call)
        names = {layer.node: layer.name for layer in layers(model)}
        ends = {}
        for node in names:
            weight = argument(node, 1)
            quantized = isinstance(weight, Node) and weight.op == "call_module"
            norm = fused_norm(node, weight.args[0] if quantized else weight)
            if norm is not None:
                ends[node] = norm.norm
        return graph_passes(model, names, call, ends)

    def twin(self) -> nn.Module:
        """See `Student.twin`; it stays in evaluation mode whatever a training loop calls."""
        teacher = super().twin()
        assert isinstance(teacher, GraphModule)
        inside = ""  # of a fake-quantizer, whose own observer stays with it
        for name, module in list(teacher.named_modules(remove_duplicate=False)):
            if not is_watcher(module) or (inside and name.startswith(inside)):
                continue
            inside = name + "."
            if not is_fake_quantizer(module):
                teacher.set_submodule(name, nn.Identity())
        set_training(teacher, False)
        teacher.train = types.MethodType(_stay, teacher)  # type: ignore[method-assign]
        teacher.eval = types.MethodType(_stay, teacher)  # type: ignore[method-assign]
        return teacher


def _stay(self: GraphModule, mode: bool = False) -> GraphModule:
    return self


def is_prepared(model: nn.Module) -> bool:
    """Whether a graph holds a weight fake-quantizer of ours between its nodes."""
    return isinstance(model, GraphModule) and any(
        node.op == "call_module"
        and isinstance(model.get_submodule(str(node.target)), PWLQPerChannelFakeQuantize)
        for node in model.graph.nodes
    )


register_student(is_prepared, PT2EStudent)
