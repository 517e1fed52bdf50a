"""Simulated models (``zaq_plugin.ptq.simulate``): fake-quantizers become static grids."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from zaq_onnx.grids import ActivationGrid, IntegerWeight
from zaq_plugin.fake_quantize import ActivationFakeQuantize, PWLQActivationFakeQuantize
from zaq_plugin.ptq import quantized_tensors
from zaq_plugin.pwlq import PWLQTensor
from zaq_plugin.student.module_student import parametrized_layer


def is_simulated(model: nn.Module) -> bool:
    """Whether some layer of a model has a weight that a parametrization fake-quantizes."""
    return any(parametrized_layer(n, m) is not None for n, m in model.named_modules())


def from_simulated(model: nn.Module) -> nn.Module:
    """A copy of a simulated model with integer weights and static activation grids.

    Raises:
        ValueError: an activation grid that no int8 kernel computes with, or that has seen no
            data; levels that are no int8.
    """
    tensors = quantized_tensors(model)
    integer_model = copy.deepcopy(model).eval()
    for attribute in ("zaq_plan", "zaq_audit"):
        integer_model.__dict__.pop(attribute, None)
    tied: dict[int, list[nn.Parameter]] = {}
    for name, tensor in tensors.items():
        layer = integer_model.get_submodule(name)
        parametrized: Any = layer.parametrizations
        integers = _one_of(
            tied.setdefault(id(parametrized.weight.original), []), _int8(name, tensor)
        )
        weight = IntegerWeight(tensor.scale, 0 if tensor.axis is None else tensor.axis)
        # Not removed and registered anew: deep copies share the class that holds the property.
        parametrized["weight"] = parametrize.ParametrizationList([weight], integers, unsafe=True)
    for name, module in list(integer_model.named_modules()):
        if isinstance(module, ActivationFakeQuantize | PWLQActivationFakeQuantize):
            integer_model.set_submodule(name, static_grid(name, module))
    return integer_model


def _one_of(parameters: list[nn.Parameter], integers: torch.Tensor) -> nn.Parameter:
    """The parameter with these integers: tied layers share one, unless their axes differ."""
    for parameter in parameters:
        if torch.equal(parameter, integers):
            return parameter
    parameters.append(nn.Parameter(integers, requires_grad=False))
    return parameters[-1]


def _int8(name: str, tensor: PWLQTensor) -> torch.Tensor:
    if tensor.codebook.is_floating_point():
        raise ValueError(
            f"layer {name!r}: {tensor.spec.label} has float levels, which no int8 kernel "
            "computes with. Use grid='int8' (up to 6 MAC bits)."
        )
    integers = tensor.integer_weight()
    if int(integers.abs().max()) > 127:
        raise ValueError(
            f"layer {name!r}: {tensor.spec.label} has integers up to {int(integers.abs().max())}, "
            "beyond int8. Use a symmetric 8-bit format, or 7 bits and fewer."
        )
    return integers.to(torch.int8)


def static_grid(name: str, module: Any) -> nn.Module:
    """The grid of a calibrated activation fake-quantizer; Identity if it is switched off.

    Raises:
        ValueError: PWLQ activations, which are simulated only, or one without data.
    """
    if isinstance(module, PWLQActivationFakeQuantize):
        raise ValueError(
            f"{name}: PWLQ activations ({module.format.label}) are simulated: no int8 kernel "
            "computes with them. Use a number of bits for activations."
        )
    if not module.switches()[1]:
        raise ValueError(
            f"{name}: the activation has no range yet. Run zaq_plugin.ptq.calibrate(student, "
            "batches) before the export."
        )
    scale, zero_point = module.calculate_qparams()
    return ActivationGrid(
        float(scale), int(zero_point), int(module.quant_min), int(module.quant_max)
    )
