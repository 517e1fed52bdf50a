"""`strip`: what is left for export, levels baked into the weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zaq_nncf._compat import BaseQuantizer, DisableTorchFunction, hooks_of
from zaq_nncf.audit import native_facts, pwlq_facts
from zaq_nncf.static import StaticActivation, StaticChannels, StaticWeight
from zaq_nncf.student import has_weights
from zaq_nncf.weight_quantizer import NativeWeight, PWLQWeightQuantizer, native_weight, tensor_of
from zaq_plugin.pwlq import quantize
from zaq_plugin.student.batches import Call, fresh
from zaq_plugin.student.hand_over import (
    SAME_DB,
    Side,
    difference,
    inputs_at_hand,
    keep_inputs,
    module_side,
    refusal,
    student_side,
)
from zaq_plugin.student.recording import named_modules


@torch.no_grad()
def strip(model: nn.Module, *, inplace: bool = False, check: bool = True) -> nn.Module:
    """The model for deployment: it exports to ONNX (dynamo) and OpenVINO, and computes the same.

    Weights are written as the floats ``scale * k`` of their levels, and every quantizer becomes one
    of torch's fake-quantize operators in plain numbers. A weight that is shared by layers with
    other levels, or read without a quantizer, stays float, and each layer gets its levels apart.
    ``nncf.strip`` gives the same values, but modules that ``torch.export`` cannot follow.

        torch.onnx.export(zaq_nncf.strip(model), (images,), "model.onnx", dynamo=True)
        openvino.convert_model(zaq_nncf.strip(model), example_input=images)

    Args:
        model: From `quantize`, trained or not.
        inplace: Change ``model`` itself instead of a copy.
        check: Compare the stripped model with the quantized one on the first calibration batch;
            both compute in float on the same grids.

    Raises:
        ValueError: the model is not NNCF's, holds no quantizer, or a format has no int8 levels; the
            stripped model computes something else, and the text names the first layer that differs.
    """
    storage = hooks_of(model)
    if not any(isinstance(m, BaseQuantizer) for _, m in storage.named_hooks()):
        raise ValueError(
            f"nothing to strip: this {type(model).__name__} holds no quantizer. It was stripped "
            "before, or never quantized."
        )
    call = inputs_at_hand(model) if check and has_weights(model) else None
    before = None if call is None else _as_it_is(model, call)
    if not inplace:
        model = copy.deepcopy(model)
        storage = hooks_of(model)
    keep_inputs(model, None)
    model.eval()
    replacements: dict[int, nn.Module] = {}
    bare: set[str] = set()
    for hook, module in list(storage.named_hooks(remove_duplicate=False)):
        if not isinstance(module, BaseQuantizer):
            continue
        if id(module) not in replacements:
            replacements[id(module)] = _static(model, hook, module)
            if isinstance(module, PWLQWeightQuantizer | NativeWeight) and module.read_elsewhere:
                bare.add(module.weight)
        storage.set_submodule(hook, replacements[id(module)])
    write_levels(model, [m for m in replacements.values() if isinstance(m, StaticWeight)], bare)
    if before is not None and call is not None:
        modules = named_modules(model, before.passes(call))
        after = module_side("the stripped model", model, modules, DisableTorchFunction)
        gap = difference(before, after, call, SAME_DB)
        if gap is not None:
            advice = "That layer is stripped wrongly: leave it out with ignored_scope"
            raise refusal(before, after, gap, advice)
    return model


def _as_it_is(model: nn.Module, call: Call) -> Side:
    """The quantized model on the batch, before anything is written into it."""
    side = student_side("the quantized model", model)
    outputs, passes = side.run(fresh(call)), side.passes(fresh(call))
    return Side(side.name, lambda _: outputs, lambda _: passes)


def write_levels(model: nn.Module, statics: Sequence[StaticWeight], bare: set[str]) -> None:
    """Write weights into their parameters, where all that read one see the same levels."""
    for name in dict.fromkeys(static.weight for static in statics):
        parameter = tensor_of(model, name)
        here = [static for static in statics if static.weight == name]
        values = [static.values() for static in here]
        if name in bare or not all(torch.equal(v, values[0]) for v in values):
            for static in here:
                static.keep_values(parameter)
        else:
            parameter.copy_(values[0])


def _static(model: nn.Module, hook: str, quantizer: BaseQuantizer) -> nn.Module:
    if isinstance(quantizer, PWLQWeightQuantizer):
        return _levels(model, quantizer)
    low, high, scale, zero_point = quantizer.get_parameters_for_torch_fq()
    shape = list(quantizer.scale_shape)
    axis = shape.index(max(shape)) if quantizer.per_channel else None
    weight = native_weight(model, hook, quantizer)
    if weight is not None:
        ends = int(low), int(high)
        return _native_levels(model, weight, scale, zero_point, axis, ends)
    if axis is None:
        return StaticActivation(float(scale), int(zero_point), int(low), int(high))
    return StaticChannels(scale, zero_point, axis, int(low), int(high))


def _levels(model: nn.Module, quantizer: PWLQWeightQuantizer) -> StaticWeight:
    """The levels of a weight; they are chosen now if the quantizer never ran."""
    name, parameter = quantizer.weight, tensor_of(model, quantizer.weight)
    if quantizer.grid.edges.numel() == 0:
        quantizer.quantize(parameter)
    grid, facts = quantizer.grid, pwlq_facts(quantizer, parameter)
    try:
        scale, _ = quantizer.calculate_qparams()
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    stored = quantize(parameter, grid.spec, grid.ch_axis, edges=grid.edges)
    codes = stored.integer_weight()
    return StaticWeight(codes, scale, grid.ch_axis, name, quantizer.source, facts, grid.spec)


def _native_levels(
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
    parameter = tensor_of(model, name)
    shape = [1] * parameter.dim()
    if axis is not None:
        shape[axis] = -1
    steps = torch.round(parameter.float() / scale.view(shape)) + zero_point.view(shape)
    codes = steps.clamp(*ends)
    facts = native_facts()
    return StaticWeight(codes, scale, axis, name, None, facts, zero_point=zero_point)
