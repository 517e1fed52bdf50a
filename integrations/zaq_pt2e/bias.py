"""Bias correction: what quantized weights add to a layer's mean output is taken off its bias.

Quantizing W to W^ shifts the output by ``E[(W^ - W) x]`` per channel (Nagel et al., ICCV 2019,
section 4.2). Convolutions and linear layers are linear, so that the shift follows exactly from the
mean input image ``E[x]``, borders included. It is gathered while the prepared model is calibrated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from zaq_plugin._host_module import HostModule
from zaq_pt2e.graph import (
    LINEAR,
    WEIGHTED,
    add_note,
    argument,
    constant_value,
    layers,
    new_tensor,
    note_of,
    put_tensor,
    set_argument,
    tensor_at,
)


class InputMean(HostModule):
    """Mean of a tensor over its batch axis, weighted by batch size.

    It stands beside the layer in the prepared graph: it is called with the layer's input, its
    output goes nowhere, and conversion removes it.
    """

    resizable = ("mean",)
    mean: Tensor
    count: Tensor
    varying: Tensor
    _is_impure = True  # to torch.fx: no dead code

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.empty(0))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("varying", torch.zeros((), dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        """Take a batch into account; returns it unchanged."""
        self.add(x)
        return x

    @torch.compiler.disable
    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Take a batch (N, ...) into account."""
        if x.dim() < 2 or x.numel() == 0 or not x.is_floating_point():
            return
        batch = x.detach().float().mean(0)
        if int(self.count) == 0:
            self.mean.data = batch
        elif self.mean.shape != batch.shape:
            self.varying.fill_(True)
            return
        else:
            self.mean += (batch - self.mean) * (x.shape[0] / (int(self.count) + x.shape[0]))
        self.count += x.shape[0]

    @property
    def remark(self) -> str | None:
        """Why there is no mean to correct with, or None."""
        if int(self.count) == 0:
            return "no bias correction: it saw no calibration batch"
        if bool(self.varying):
            return "no bias correction: calibration batches differ in shape"
        return None

    def convert(self, model: GraphModule, node: Node) -> None:
        """What the host calls in conversion: take the node out of the graph."""
        model.graph.erase_node(node)


def watch_inputs(
    model: GraphModule, modules: Mapping[Any, Any], is_weight: Callable[[object], bool]
) -> None:
    """Put an `InputMean` beside every layer whose weight has an observer of ours.

    Args:
        model: The graph's module, into which the host has not inserted its observers yet.
        modules: The host's map from edges (input, node) and nodes to observers.
        is_weight: Says whether a module is a weight observer of ours.
    """
    names: dict[Node, str] = {}
    for edge, module in modules.items():
        if not isinstance(edge, tuple) or not is_weight(module):
            continue
        source, node = edge
        x = argument(node, 0)
        if argument(node, 1) is not source or not isinstance(x, Node):
            continue
        if x not in names:
            names[x] = f"input_mean_{len(names)}"
            model.add_submodule(names[x], InputMean())
            # After the layer, so that conversion meets its weight first.
            with model.graph.inserting_after(node):
                model.graph.call_module(names[x], (x,))
        add_note(node, input_mean=names[x])


def input_mean(model: GraphModule, node: Node) -> InputMean | None:
    """The `InputMean` that watches a layer's input, if there is one."""
    name = note_of(node).get("input_mean")
    if name is None:
        return None
    watcher = model.get_submodule(name)
    return watcher if isinstance(watcher, InputMean) else None


@torch.no_grad()
def mean_shift(node: Node, error: Tensor, mean: Tensor) -> Tensor:
    """``E[(W - W^) x]`` per output channel of a convolution or linear layer.

    Args:
        node: The layer.
        error: W - W^, the weight's shape.
        mean: E[x] over the batch.
    """
    mean = mean.to(error.device)
    shift = node.target(mean.unsqueeze(0), error, None, *node.args[3:])  # type: ignore[operator]
    channel = shift.dim() - 1 if node.target in LINEAR else 1
    return shift.movedim(channel, 0).flatten(1).mean(1)


@torch.no_grad()
def add_to_bias(model: GraphModule, node: Node, shift: Tensor) -> None:
    """Add to the bias of a layer, in conversion; the old tensor is left as it is."""
    bias = argument(node, 2)
    value, name = shift, f"{note_of(node).get('name', node.name)}.bias"
    if isinstance(bias, Node) and bias.op == "get_attr":
        old = tensor_at(model, str(bias.target))
        value = old.detach() + shift.to(old.dtype)
        if len(bias.users) == 1 and str(bias.target).endswith(".bias"):
            put_tensor(model, str(bias.target), nn.Parameter(value, old.requires_grad))
            return
        name = f"{str(bias.target).rpartition('.')[0] or node.name}.bias"
    set_argument(node, 2, new_tensor(model, name, nn.Parameter(value), node))


def give_biases(model: GraphModule, *, training: bool) -> None:
    """A bias of zero for every layer that has none, and one of its own for every other.

    So bias correction changes no shapes, and a calibrated state loads into a fresh model.

    Args:
        model: Before the host prepares it; changed in place.
        training: The host keeps BatchNorm apart: the layer in front of it has BatchNorm's shift.
    """
    owners: dict[str, str] = {}
    for layer in list(layers(model)):
        node, bias = layer.node, argument(layer.node, 2)
        name = f"{layer.name or node.name}.bias"
        if isinstance(bias, Node) and bias.op == "get_attr":
            if owners.setdefault(str(bias.target), layer.name) == layer.name:
                continue
            value = tensor_at(model, str(bias.target)).detach().clone()
        elif bias is not None or (training and _is_normalised(node)):
            continue
        else:
            weight = constant_value(model, argument(node, 1))
            channels = _channels(node)
            if weight is None or channels is None:
                continue
            value = weight.new_zeros(channels)
        set_argument(node, 2, new_tensor(model, name, nn.Parameter(value), node))
    model.recompile()


def _is_normalised(node: Node) -> bool:
    users = list(node.users)
    return len(users) == 1 and users[0].target is torch.ops.aten.batch_norm.default


def _channels(node: Node) -> int | None:
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.dim() == 0:
        return None
    return int(value.shape[-1 if node.target in LINEAR else -1 - _spatial(node)])


def _spatial(node: Node) -> int:
    kind: Any = node.target
    return int(WEIGHTED[kind][-2])
