"""Simulated quantization: a copy of the model whose layers compute with grid values in float.

Each convolution or linear layer gets a fake-quantizer on its weight (a parametrization, so that the
float weight stays a trainable parameter) and one on its input (a submodule ``input_fake_quant``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from zaq_plugin.fake_quantize import (
    ActivationFakeQuantize,
    PWLQActivationFakeQuantize,
    PWLQPerChannelFakeQuantize,
)
from zaq_plugin.layers import channel_axis, out_features
from zaq_plugin.observers import MinMaxObserver, TopKMedianObserver
from zaq_plugin.ptq.auditing import audit
from zaq_plugin.ptq.bake import bake_parametrizations, copied
from zaq_plugin.ptq.plan import Depthwise, make_plan
from zaq_plugin.ptq.wrappers import unwrap_parts, unwrapped
from zaq_plugin.pwlq import QuantSpec
from zaq_plugin.pwlq.base import is_simulated
from zaq_plugin.student.assign import Activations, Override, module_classes


def simulate(
    model: nn.Module,
    weights: QuantSpec | None,
    activations: Activations = 8,
    *,
    overrides: Mapping[Any, Override] | None = None,
    input_bits: int | None = 8,
    first_last: Override = None,
    depthwise: Depthwise = "int8",
    observer: Callable[..., Any] = TopKMedianObserver,
    example_inputs: Sequence[Any] | None = None,
    per_tensor: bool = False,
) -> nn.Module:
    """A deep copy of the model with fake-quantized weights and layer inputs.

    Fold BatchNorm first (`fold_batch_norm`). Weights are on their grid at once; activations pass
    unchanged until `calibrate` has seen data. Nothing is left out silently: ``student.zaq_audit``
    lists every weight with its grid or the reason why it has none.

    Args:
        model: Any module; it is not touched.
        weights: Grid of all weights, per output channel.
        activations: Grid of the layers' inputs, per tensor: a width of 2 to 8 bits for a uniform
            asymmetric grid with ranges by ``observer``, a `UniformSpec` (clip ``minmax``), a
            `PWLQSpec`, or None for float.
        overrides: What differs, by layer name, name of a module around it, pattern (``*.conv1``)
            or module class. A value is a weight format, a pair (weight format, activations), or
            None to leave the layer float. See `zaq_plugin.student.assign` for which one wins.
        input_bits: Width of the network's own input, which the published protocols leave at 8 bits;
            None treats it like any other activation.
        first_last: ``(weights, activations)`` of the first and the last layer.
        depthwise: ``int8`` keeps a depthwise layer at 8 uniform bits where its PWLQ levels would
            cost more than the narrow codes save (nine weights a channel: always); ``as-told`` does
            not.
        observer: Range observer of uniform activations.
        example_inputs: What the model is called with. If given, the model runs once to see which
            layer is first and which takes the network's input; otherwise the first one registered
            is taken to be it.
        per_tensor: Give each weight one grid instead of one per output channel.

    Returns:
        The student, in the model's mode, with the attribute ``zaq_audit``.

    Raises:
        ValueError: If nothing was quantized, an override matches nothing, or a weight cannot be
            quantized.
        TypeError: If a grid is neither a spec nor a width, or an override is none.
    """
    _check(model, weights, activations)
    student = copied(unwrapped(model))
    unwrap_parts(student)
    classes = module_classes(student)  # of computed weights only plain layers are left
    bake_parametrizations(student)
    plans = make_plan(
        student,
        weights,
        activations,
        overrides=overrides,
        input_bits=input_bits,
        first_last=first_last,
        depthwise=depthwise,
        example_inputs=example_inputs,
        classes=classes,
    )
    for plan in plans:
        if plan.weights is None:
            continue
        layer = student.get_submodule(plan.name)
        try:
            attach(layer, plan.weights, plan.activations, observer, per_tensor=per_tensor)
        except (TypeError, ValueError) as error:
            raise type(error)(f"layer {plan.name!r} ({plan.kind}): {error}") from error
    student.zaq_plan = {plan.name: plan for plan in plans}  # type: ignore[assignment]
    student.zaq_audit = audit(student).require_any()  # type: ignore[assignment]
    return student


def _check(model: object, weights: object, activations: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"simulate expects an nn.Module, got {type(model).__name__}")
    if weights is not None and not isinstance(weights, QuantSpec):
        raise TypeError(
            f"weights must be a format such as a PWLQSpec, or None; got {type(weights).__name__}"
        )
    if activations is not None and not isinstance(activations, QuantSpec | int):
        raise TypeError(
            "activations must be a width in bits, a PWLQSpec, a UniformSpec or None, got "
            f"{type(activations).__name__}"
        )


def attach(
    layer: nn.Module,
    weights: QuantSpec,
    activations: Activations,
    observer: Callable[..., Any] = TopKMedianObserver,
    *,
    per_tensor: bool = False,
) -> None:
    """Put one layer's weight, and its input if ``activations`` is given, behind fake-quantizers."""
    own: Any = layer
    weight: Any = own.weight
    device = weight.device
    if own.bias is None:  # what bias correction changes is there from the start
        bias = torch.zeros(out_features(layer), dtype=weight.dtype, device=device)
        layer.bias = nn.Parameter(bias, requires_grad=bool(weight.requires_grad))
    axis = None if per_tensor else channel_axis(layer)
    fake_quant = PWLQPerChannelFakeQuantize(weights, axis)
    fake_quant.to(device=device).train(layer.training)
    fake_quant.disable_observer()  # edges are solved once, at the first forward
    parametrize.register_parametrization(layer, "weight", fake_quant)
    if activations is None:
        return
    watcher = activation_fake_quant(activations, observer).to(device=device)
    watcher.train(layer.training)
    watcher.disable_observer()
    watcher.disable_fake_quant()
    layer.add_module("input_fake_quant", watcher)
    layer.register_forward_pre_hook(_quantize_input, with_kwargs=True)


def activation_fake_quant(
    activations: QuantSpec | int, observer: Callable[..., Any] = TopKMedianObserver
) -> ActivationFakeQuantize | PWLQActivationFakeQuantize:
    """The fake-quantizer of one activation tensor.

    Raises:
        ValueError: If a width is out of range, or a uniform spec asks for a clip by squared error.
    """
    if is_simulated(activations):
        return PWLQActivationFakeQuantize(activations, observer=observer)
    if isinstance(activations, QuantSpec):
        bits, symmetric = activations.affine_activation()
        return ActivationFakeQuantize(MinMaxObserver, bits, symmetric)
    return ActivationFakeQuantize(observer, activations)


def _quantize_input(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward pre-hook: the layer's first argument on its grid."""
    watcher: Any = layer.input_fake_quant
    if args:
        return (watcher(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "input": watcher(kwargs["input"])}
