"""Single int8 modules of torch.ao as float layers: integer weights, options, arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zaq_onnx._compat import CONVOLUTIONS, LINEAR, layer_bias, quantized_weight
from zaq_onnx.grids import Weighted


def weighted(name: str, module: nn.Module) -> Weighted:
    """The float layer with the integer weight of a converted or reference one."""
    weight = quantized_weight(module)
    integers = weight.int_repr()
    if weight.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
        scale, axis = weight.q_per_channel_scales().float(), weight.q_per_channel_axis()
        zero = weight.q_per_channel_zero_points()
    else:
        scale, axis = torch.tensor([weight.q_scale()]), 0
        zero = torch.tensor([weight.q_zero_point()])
        scale = scale.expand(integers.shape[0]).clone()
    if bool(zero.any()):
        raise ValueError(
            f"{name}: the weight's zero point is not 0; int8 kernels want symmetric "
            "weights (torch.per_channel_symmetric)."
        )
    function = "linear" if isinstance(module, LINEAR) else _named(module)
    options = {} if function == "linear" else _options(module)
    return Weighted(function, integers, scale, axis, layer_bias(module), options)


def _named(module: nn.Module) -> str:
    return next(name for kind, name in CONVOLUTIONS.items() if isinstance(module, kind))


def _options(module: Any) -> dict[str, object]:
    names = ["stride", "padding", "dilation", "groups"]
    if getattr(module, "transposed", False):
        names.append("output_padding")
    if getattr(module, "padding_mode", "zeros") != "zeros":
        raise ValueError(f"padding_mode {module.padding_mode!r} cannot be exported; use 'zeros'.")
    return {name: getattr(module, name) for name in names}


def arguments(kind: str, module: Any) -> dict[str, Any]:
    """Keyword arguments of the float operator in place of an activation or normalisation."""
    if kind == "leaky_relu":
        return {"negative_slope": float(module.negative_slope)}
    if kind == "elu":
        return {"alpha": float(module.alpha)}
    if kind == "softmax":
        return {"dim": module.dim}
    if kind in ("layer_norm", "group_norm", "instance_norm"):
        options = {"weight": module.weight, "bias": module.bias, "eps": module.eps}
        if kind == "layer_norm":
            options["normalized_shape"] = module.normalized_shape
        elif kind == "group_norm":
            options["num_groups"] = module.num_groups
        return options
    return {}
