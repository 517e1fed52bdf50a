"""What every layer of a model is given and what it makes, whatever kind of model it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn

from zaq_plugin.layers import hooked
from zaq_plugin.student.batches import Call

Passes = dict[str, tuple[Tensor, Tensor]]
"""By layer, in order of execution: what it was given and what it made, at its first call."""


def tensors(value: Any) -> list[Tensor]:
    """The floating-point tensors of a model's output, in order; integers are dequantized.

    NaN and infinity are zero.
    """
    if isinstance(value, Tensor):
        value = value.dequantize() if value.is_quantized else value.detach()
        return [value.nan_to_num(0.0, 0.0, 0.0)] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        value = list(value.values())
    return [t for v in value for t in tensors(v)] if isinstance(value, list | tuple) else []


def module_passes(
    model: nn.Module, layers: Mapping[str, nn.Module], call: Call, unseen: Any = nullcontext
) -> Passes:
    """Run a model whose layers are modules.

    Args:
        model: It is called.
        layers: Modules by the layers' names.
        call: One batch.
        unseen: A context for what is done in hooks.
    """
    passes: Passes = {}
    with _watched(layers, passes, unseen):
        model(*call[0], **call[1])
    return passes


@contextmanager
def _watched(layers: Mapping[str, nn.Module], passes: Passes, unseen: Any) -> Iterator[None]:
    handles = []
    for name, module in layers.items():

        def keep(_: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            with unseen():
                inputs, outputs = [*tensors(args), *tensors(kwargs)], tensors(output)
                if inputs and outputs:
                    passes.setdefault(name, (inputs[0].clone(), outputs[0].clone()))

        handles.append(module.register_forward_hook(keep, with_kwargs=True))
    with hooked(handles):
        yield


def named_modules(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """The modules of these names; names that the model does not have are left out."""
    modules = dict(model.named_modules(remove_duplicate=False))
    return {name: modules[name] for name in names if name in modules}


def graph_passes(
    model: fx.GraphModule,
    layers: Mapping[fx.Node, str],
    call: Call,
    ends: Mapping[fx.Node, fx.Node] | None = None,
) -> Passes:
    """Run a graph whose layers are nodes.

    Args:
        model: The graph's module.
        layers: Names of layers by their nodes.
        call: One batch, its keywords in the order of the graph's inputs.
        ends: Nodes that make what a layer makes, where that is another one: its BatchNorm.
    """
    interpreter = _Interpreter(model, layers, ends or {})
    args, kwargs = call
    interpreter.run(*torch.utils._pytree.tree_leaves([args, kwargs]), enable_io_processing=False)
    return interpreter.passes


class _Interpreter(fx.Interpreter):
    def __init__(
        self,
        model: fx.GraphModule,
        layers: Mapping[fx.Node, str],
        ends: Mapping[fx.Node, fx.Node],
    ) -> None:
        super().__init__(model)
        self.layers = {ends.get(node, node): name for node, name in layers.items()}
        self.begins = {ends.get(node, node): node for node in layers}
        self.inputs: dict[fx.Node, list[Tensor]] = {}
        self.passes: Passes = {}

    def run_node(self, n: fx.Node) -> Any:
        """As torch.fx, which calls it for every node."""
        if n in self.begins.values() and isinstance(n.args[0], fx.Node):
            self.inputs[n] = [x.clone() for x in tensors(self.env[n.args[0]])[:1]]
        output = super().run_node(n)
        if n in self.layers:
            inputs, out = self.inputs.get(self.begins[n]), tensors(output)
            if inputs and out:
                self.passes.setdefault(self.layers[n], (inputs[0], out[0].clone()))
        return output
