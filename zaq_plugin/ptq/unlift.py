"""Layers of an exported graph as modules again, so that they can be simulated and corrected."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from zaq_plugin.graph import attribute_at, free_name
from zaq_plugin.layers import LAYERS

_CONVOLUTIONS: dict[str, type[nn.Module]] = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
}
_TRANSPOSED: dict[str, type[nn.Module]] = {
    "conv_transpose1d": nn.ConvTranspose1d,
    "conv_transpose2d": nn.ConvTranspose2d,
    "conv_transpose3d": nn.ConvTranspose3d,
}


def restore_layers(model: fx.GraphModule, *, inplace: bool = False) -> fx.GraphModule:
    """Turn the convolutions and linear operators of an exported graph back into modules.

    ``torch.export`` leaves calls like ``aten.conv2d(x, weight, bias, ...)``. Each becomes a call of
    an ``nn.Conv2d`` (or its like) that holds the same parameters under the same names, so that
    `simulate` finds it. The function of the graph does not change. Fold BatchNorm first or
    afterwards.

    Args:
        model: ``ExportedProgram.module()``.
        inplace: Change ``model`` itself instead of a deep copy.

    Returns:
        The graph module with layers; operators whose weight is computed in the graph stay as they
        are.

    Raises:
        TypeError: If ``model`` is no ``fx.GraphModule``.
        ValueError: If the graph has no such operator.
    """
    source: object = model
    if not isinstance(source, fx.GraphModule):
        way_out = "; pass program.module()" if isinstance(source, ExportedProgram) else ""
        raise TypeError(
            f"restore_layers expects an fx.GraphModule, got {type(source).__name__}{way_out}"
        )
    if not inplace:
        model = copy.deepcopy(model)
    layers: list[tuple[fx.Node, tuple[Any, ...], nn.Module]] = []
    for node in model.graph.nodes:
        layer_type, options = _layer_of(node)
        if layer_type is None:
            continue
        weight, bias = _parameter(model, node, 1), _parameter(model, node, 2)
        if weight is None or (bias is None and _given(node, 2) is not None):
            continue
        sources = tuple(str(n.target) for n in (_given(node, 1), _given(node, 2)) if n is not None)
        key = (sources, layer_type, str(options))
        layers.append((node, key, _build(layer_type, options, weight, bias)))
    targets: dict[tuple[Any, ...], str] = {}
    for node, key, layer in layers:
        if key not in targets:
            targets[key] = _install(model, key[0], layer)
        with model.graph.inserting_before(node):
            call = model.graph.call_module(targets[key], (node.args[0],))
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        model.graph.erase_node(node)
    if not layers:
        raise ValueError(
            "restore_layers found no convolution or linear operator whose weight is a parameter; "
            "pass what torch.export.export(...).module() gives"
        )
    for node in list(model.graph.nodes):
        if node.op == "get_attr" and not node.users:
            model.graph.erase_node(node)
    model.graph.lint()
    model.recompile()
    return model


def _layer_of(node: fx.Node) -> tuple[type[nn.Module] | None, dict[str, Any]]:
    """The module type that a node's operator stands for, and the options of its constructor."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None, {}
    space, _, name = node.target._schema.name.partition("::")
    if space != "aten":
        return None, {}
    if name == "linear":
        return nn.Linear, {}
    layer_type = _CONVOLUTIONS.get(name) or _TRANSPOSED.get(name)
    if layer_type is None:
        return None, {}
    options = {}
    for position, argument in enumerate(node.target._schema.arguments):
        if argument.name in ("input", "weight", "bias"):
            continue
        value = _given(node, position)
        options[argument.name] = argument.default_value if value is None else value
    return layer_type, options


def _given(node: fx.Node, position: int) -> Any:
    if len(node.args) > position:
        return node.args[position]
    target: Any = node.target
    return node.kwargs.get(target._schema.arguments[position].name)


def _parameter(model: nn.Module, node: fx.Node, position: int) -> nn.Parameter | None:
    source = _given(node, position)
    if not isinstance(source, fx.Node) or source.op != "get_attr":
        return None
    value = attribute_at(model, str(source.target))
    if isinstance(value, nn.Parameter):
        return value
    return nn.Parameter(value, requires_grad=False) if isinstance(value, Tensor) else None


def _build(
    layer_type: type[nn.Module],
    options: dict[str, Any],
    weight: nn.Parameter,
    bias: nn.Parameter | None,
) -> nn.Module:
    """A module without storage of its own that takes over the given parameters."""
    settings: dict[str, Any] = {"bias": bias is not None, "device": "meta"}
    if layer_type is nn.Linear:
        features = (weight.shape[1], weight.shape[0])
        layer: nn.Module = nn.Linear(*features, **settings)
    else:
        kernel = tuple(weight.shape[2:])
        groups = int(options["groups"])
        wide = (weight.shape[0], weight.shape[1] * groups)
        inputs, outputs = wide if layer_type in _TRANSPOSED.values() else wide[::-1]
        for name, value in options.items():
            if isinstance(value, list | tuple):
                value = tuple(value) * (len(kernel) if len(value) == 1 else 1)
            settings[name] = value
        layer = layer_type(inputs, outputs, kernel, **settings)
    layer.register_parameter("weight", weight)
    layer.register_parameter("bias", bias)
    return layer.eval()


def _install(model: nn.Module, sources: tuple[str, ...], layer: nn.Module) -> str:
    """Put the layer where its tensors are, if that place holds nothing else; give its name.

    Args:
        model: The graph module.
        sources: Names of the weight and, if there is one, the bias.
        layer: What to install.
    """
    for source in reversed(sources):  # a tied weight is found under one name only, a bias is not
        name = source.rpartition(".")[0]
        place = model.get_submodule(name)
        own = {id(layer.weight), id(layer.bias)}
        tensors = [*place.parameters(recurse=False), *place.buffers(recurse=False)]
        alone = all(id(t) in own for t in tensors) and not any(place.children())
        if name and alone and not isinstance(place, LAYERS):
            model.set_submodule(name, layer)
            return name
    name = free_name(model, f"{sources[0].replace('.', '_')}_layer")
    model.add_module(name, layer)
    return name
