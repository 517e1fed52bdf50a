"""Layers that are given one sample without its batch axis.

torch computes with a vector in a linear layer and with a single image in a convolution; the int8
kernels of both want the batch axis, and say so in the converted model only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from zaq_fx.layers import layers_of, root_of
from zaq_plugin.layers import LAYERS
from zaq_plugin.student.batches import Call, as_call, fresh, inputs_of, taking
from zaq_plugin.student.modes import evaluating

Shapes = dict[str, tuple[int, ...]]


def single_samples(model: nn.Module, call: Call) -> Shapes:
    """Layers whose input has no batch axis, and its shape, found by one run in evaluation mode."""
    shapes: Shapes = {}
    with evaluating(model), _watching(model, shapes), taking(model, call):
        args, kwargs = fresh(call)
        model(*args, **kwargs)
    return shapes


@contextmanager
def _watching(model: nn.Module, shapes: Shapes) -> Iterator[None]:
    handles = []
    for name, module in model.named_modules():
        root = root_of(module) if name else None
        if root is None:
            continue
        weight: Any = root.weight
        least = 2 if isinstance(root, nn.Linear) else weight.dim()

        def look(_: nn.Module, args: Any, name: str = name, least: int = least) -> None:
            if args and isinstance(args[0], Tensor) and args[0].dim() < least:
                shapes[name] = tuple(args[0].shape)

        handles.append(module.register_forward_pre_hook(look))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def add_batch_axes(traced: fx.GraphModule, names: Shapes) -> int:
    """Give these layers a batch axis in front, and take it away behind them, in place."""
    count = 0
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or str(node.target) not in names:
            continue
        if not isinstance(traced.get_submodule(str(node.target)), LAYERS):
            continue
        with traced.graph.inserting_before(node):
            batch = traced.graph.call_function(torch.unsqueeze, (node.args[0], 0))
        node.args = (batch, *node.args[1:])
        with traced.graph.inserting_after(node):
            sample = traced.graph.call_function(torch.squeeze, (node, 0))
        node.replace_all_uses_with(sample, delete_user_cb=lambda user, own=sample: user is not own)
        count += 1
    return count


def require_batches(prepared: fx.GraphModule, batches: Sequence[Any]) -> None:
    """Refuse a prepared model whose int8 kernels would refuse inputs such as the first batch.

    Raises:
        ValueError: a layer that becomes int8 is given a sample without its batch axis.
    """
    if not batches:
        return
    quantized = {layer.name for layer in layers_of(prepared) if layer.spec is not None}
    shapes = single_samples(prepared, as_call(batches[0], inputs_of(prepared)))
    for name in quantized & set(shapes):
        raise ValueError(
            f"layer '{name}' is given a tensor of shape {shapes[name]}, one sample without its "
            "batch axis, which torch's int8 kernels do not take. Pass what the model is called "
            "with, prepare_model(model, example_inputs), which adds the axis; or use "
            "zaq_fx.prepare"
        )
