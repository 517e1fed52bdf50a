"""Who gets which grid: one plan per layer of a model, overrides and exceptions included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from zaq_plugin.layers import LAYERS, channel_axis, hooked, is_depthwise
from zaq_plugin.ptq.computed_weights import why_not_plain
from zaq_plugin.pwlq import QuantSpec, UniformSpec, packed_size
from zaq_plugin.student.assign import (
    Activations,
    Classes,
    Override,
    Overrides,
    check_value,
)
from zaq_plugin.student.batches import taking
from zaq_plugin.student.layer import own_class

Depthwise = Literal["int8", "as-told"]


@dataclass(frozen=True)
class LayerPlan:
    """What happens to one layer.

    Attributes:
        name: Qualified name of the layer, or of the parameter where no known layer owns it.
        kind: Type of the module that owns the weight.
        numel: Number of weights.
        weights: Grid of the weight; None leaves it float.
        activations: Grid of the layer's input: a width for a uniform one, a spec, or None.
        reason: Why the weight stays float, or a remark.
        is_input: The layer takes the network's input.
    """

    name: str
    kind: str
    numel: int
    weights: QuantSpec | None = None
    activations: Activations = None
    reason: str | None = None
    is_input: bool = False


def plans_of(student: nn.Module) -> dict[str, LayerPlan] | None:
    """What `simulate` has left on its student; None of a student of another host."""
    return getattr(student, "zaq_plan", None)


def stored_size(numel: int, channels: int, spec: QuantSpec) -> int:
    """Bytes of a weight on a grid: dense codes, and what each channel's levels are made of."""
    return packed_size(numel, spec.stored_bits) + spec.table_bytes(channels)


def make_plan(
    model: nn.Module,
    weights: QuantSpec | None,
    activations: Activations,
    *,
    overrides: Mapping[Any, Override] | None,
    input_bits: int | None,
    first_last: Override,
    depthwise: Depthwise,
    example_inputs: Sequence[Any] | None,
    classes: Mapping[str, Classes],
) -> list[LayerPlan]:
    """One entry per weight of at least two dimensions, in the model's order.

    Args:
        classes: Of each layer, as overrides by class see it; the rest is `simulate`'s.

    Raises:
        TypeError, ValueError: As in `Overrides`; an override that matches no layer.
    """
    layers, other = _layers(model)
    order, inputs = _execution(model, layers, example_inputs)
    differing = Overrides(overrides, activations)
    differing.require_used({name: classes[name] for name in layers})
    outer = None if first_last is None else check_value(first_last, activations, "first_last")
    ends = {order[0], order[-1]} if order else set()
    plans = []
    for name, layer in layers.items():
        kind, weight = own_class(layer).__name__, _weight(layer)
        layer_weights, layer_activations = weights, activations
        reason: str | None = None
        explicit = False
        if name in inputs and activations is not None and input_bits is not None:
            layer_activations = input_bits
        for choice in (outer if name in ends else None, differing.find(name, classes[name])):
            if choice is not None:  # the second wins
                layer_weights, explicit = choice.weights, True
                reason = "first or last layer" if choice is outer else choice.reason
                if choice.own_activations:
                    layer_activations = choice.activations
        blocked = _blocked(layer)
        if blocked or layer_weights is None:
            reason = blocked or reason or "no weight grid was asked for"
            is_input = name in inputs
            plans.append(LayerPlan(name, kind, weight.numel(), None, None, reason, is_input))
            continue
        if depthwise == "int8" and not explicit and is_depthwise(layer):
            layer_weights, reason = cheaper_depthwise(layer, weight, layer_weights)
        plans.append(
            LayerPlan(
                name,
                kind,
                weight.numel(),
                layer_weights,
                layer_activations,
                reason,
                name in inputs,
            )
        )
    return plans + other


def _layers(model: nn.Module) -> tuple[dict[str, nn.Module], list[LayerPlan]]:
    """The layers that can be simulated, and a plan for every other weight, which stays float."""
    layers: dict[str, nn.Module] = {
        name: m for name, m in model.named_modules() if isinstance(m, LAYERS)
    }
    other = []
    for name, module in model.named_modules():
        if name in layers or any(name.startswith(f"{n}.parametrizations") for n in layers):
            continue
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.dim() > 1:
                full = f"{name}.{key}" if name else key
                reason = "no convolution or linear module owns this weight"
                if isinstance(module, torch.fx.GraphModule) or type(module) is nn.Module:
                    reason += " (an exported graph: use restore_layers() first)"
                kind = type(module).__name__
                other.append(LayerPlan(full, kind, parameter.numel(), reason=reason))
    return layers, other


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _blocked(layer: nn.Module) -> str | None:
    """Why a layer cannot be simulated at all."""
    if parametrize.is_parametrized(layer):
        return "its weight has a parametrization already; remove or bake it in first"
    if isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "nn.MultiheadAttention reads this weight without calling the layer"
    return why_not_plain(layer)


def cheaper_depthwise(
    layer: nn.Module, weight: Tensor, spec: QuantSpec
) -> tuple[QuantSpec, str | None]:
    """int8 for a depthwise layer whose levels would cost more than the narrower codes save.

    Returns:
        The format, and why it is another; None where it is not.
    """
    int8 = UniformSpec(bits=8, symmetry="symmetric")
    channels = weight.shape[channel_axis(layer)]
    numel = weight.numel()
    narrow, plain = stored_size(numel, channels, spec), stored_size(numel, channels, int8)
    if narrow < plain:
        return spec, None
    each = numel // channels
    return int8, (
        f"kept int8: {each} weights a channel, {narrow} bytes with its levels against {plain}"
    )


def _execution(
    model: nn.Module, layers: Mapping[str, nn.Module], example_inputs: Sequence[Any] | None
) -> tuple[list[str], set[str]]:
    """Layers in order of execution and those that take the network's input.

    Without example inputs the order of registration stands in for both.
    """
    if not layers:
        return [], set()
    if example_inputs is None:
        order = list(layers)
        return order, {order[0]}
    return trace_order(model, layers, tuple(example_inputs), {})


def trace_order(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> tuple[list[str], set[str]]:
    """Run the model once and watch: layers in order of their first call, and those at the input.

    A layer is at the input if it is the first to run, or is called with an input tensor itself.
    """
    order: list[str] = []
    arguments = {id(x) for x in (*args, *kwargs.values()) if isinstance(x, Tensor)}
    inputs: set[str] = set()

    def watch(name: str) -> Any:
        def hook(module: nn.Module, hook_args: tuple[Any, ...], hook_kwargs: Any) -> None:
            if name not in order:
                order.append(name)
            if any(id(x) in arguments for x in (*hook_args, *hook_kwargs.values())):
                inputs.add(name)

        return hook

    handles = [
        layer.register_forward_pre_hook(watch(name), with_kwargs=True, prepend=True)
        for name, layer in layers.items()
    ]
    training = model.training
    try:
        with hooked(handles), torch.no_grad(), taking(model, (args, dict(kwargs))):
            model.eval()(*args, **kwargs)
    finally:
        model.train(training)
    if order:
        inputs.add(order[0])
    return order, inputs
