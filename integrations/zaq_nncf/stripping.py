"""`strip`: what is left for export, levels baked into the weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from zaq_nncf._compat import BaseQuantizer, hooks_of
from zaq_nncf.audit import native_facts, native_weight, pwlq_facts
from zaq_nncf.static import StaticActivation, StaticChannels, StaticWeight
from zaq_nncf.weight_quantizer import PWLQWeightQuantizer
from zaq_plugin.pwlq import quantize


@torch.no_grad()
def strip(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """The model for deployment: it exports to ONNX (dynamo) and OpenVINO, and computes the same.

    Weights are written as the floats ``scale * k`` of their levels, and every quantizer becomes one
    of torch's fake-quantize operators in plain numbers. ``nncf.strip`` gives the same values, but
    modules that ``torch.export`` cannot follow.

        torch.onnx.export(zaq_nncf.strip(model), (images,), "model.onnx", dynamo=True)
        openvino.convert_model(zaq_nncf.strip(model), example_input=images)

    Args:
        model: From `quantize`, trained or not.
        inplace: Change ``model`` itself instead of a copy.

    Raises:
        ValueError: the model is not NNCF's, holds no quantizer, or a format has no int8 levels.
    """
    storage = hooks_of(model)
    if not any(isinstance(m, BaseQuantizer) for _, m in storage.named_hooks()):
        raise ValueError(
            f"nothing to strip: this {type(model).__name__} holds no quantizer. It was stripped "
            "before, or never quantized."
        )
    if not inplace:
        model = copy.deepcopy(model)
        storage = hooks_of(model)
    model.eval()
    made: dict[int, nn.Module] = {}
    described = _describe(model)
    for hook, module in list(storage.named_hooks(remove_duplicate=False)):
        if not isinstance(module, BaseQuantizer):
            continue
        if id(module) not in made:
            made[id(module)] = _static(model, hook, module, described)
        storage.set_submodule(hook, made[id(module)])
    return model


def _describe(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What the audit says of each weight, while the float weights are still there."""
    found: dict[str, dict[str, Any]] = {}
    for _, quantizer in hooks_of(model).named_hooks():
        if isinstance(quantizer, PWLQWeightQuantizer):
            parameter = model.get_parameter(quantizer.weight)
            if quantizer.grid.edges.numel() == 0:
                quantizer.quantize(parameter)  # never ran: its levels are chosen now
            found[quantizer.weight] = pwlq_facts(quantizer, parameter)
    return found


def _static(
    model: nn.Module, hook: str, quantizer: BaseQuantizer, described: dict[str, dict[str, Any]]
) -> nn.Module:
    if isinstance(quantizer, PWLQWeightQuantizer):
        return _bake(model, quantizer, described[quantizer.weight])
    low, high, scale, zero_point = quantizer.get_parameters_for_torch_fq()
    shape = list(quantizer.scale_shape)
    axis = shape.index(max(shape)) if quantizer.per_channel else None
    weight = native_weight(model, hook)
    if weight is not None:
        ends = int(low), int(high)
        return _bake_native(model, weight, scale, zero_point, axis, ends)
    if axis is None:
        return StaticActivation(float(scale), int(zero_point), int(low), int(high))
    return StaticChannels(scale, zero_point, axis, int(low), int(high))


def _bake(model: nn.Module, quantizer: PWLQWeightQuantizer, facts: dict[str, Any]) -> StaticWeight:
    name, grid = quantizer.weight, quantizer.grid
    parameter = model.get_parameter(name)
    try:
        scale, _ = quantizer.calculate_qparams()
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    stored = quantize(parameter, grid.spec, grid.ch_axis, edges=grid.edges)
    codes = stored.integer_weight()
    made = StaticWeight(codes, scale, grid.ch_axis, name, quantizer.source, facts, grid.spec)
    parameter.copy_(made.values())
    return made


def _bake_native(
    model: nn.Module,
    name: str,
    scale: Tensor,
    zero_point: Tensor,
    axis: int | None,
    ends: tuple[int, int],
) -> StaticWeight:
    """A weight with a quantizer of NNCF's own: 8 bits.

    Those of convolutions and linear layers are symmetric, -127..127; those of normalisation layers
    without a negative weight have 0..255.
    """
    parameter = model.get_parameter(name)
    shape = [1] * parameter.dim()
    if axis is not None:
        shape[axis] = -1
    steps = torch.round(parameter.float() / scale.view(shape)) + zero_point.view(shape)
    codes = steps.clamp(*ends)
    facts = native_facts()
    made = StaticWeight(codes, scale, axis, name, None, facts, zero_point=zero_point)
    parameter.copy_(made.values())
    return made
