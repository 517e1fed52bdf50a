"""Static grids and layers on them as modules that ``torch.export`` takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zaq_onnx._compat import CONVOLUTIONS, LINEAR, QUANTIZED_LIBRARY, layer_bias, quantized_weight

assert QUANTIZED_LIBRARY is not None  # its import registers the operators used here

_ops = torch.ops.quantized_decomposed


class ActivationGrid(nn.Module):
    """Puts an activation on a per-tensor grid of integers.

    A grid narrower than 8 bits is clamped before it is quantized, because runtimes saturate at
    the limits of their integer type only.

    Args:
        scale: Step of the grid.
        zero_point: Integer that stands for zero.
        low: Smallest integer.
        high: Largest integer.
    """

    def __init__(self, scale: float, zero_point: int, low: int = 0, high: int = 255) -> None:
        super().__init__()
        if high - low > 255 or high <= low or not scale > 0:
            raise ValueError(
                f"an activation grid needs a positive scale and at most 256 integers; got scale "
                f"{scale}, integers {low} to {high}."
            )
        self.scale, self.zero_point, self.low, self.high = scale, zero_point, low, high

    @property
    def limits(self) -> tuple[int, int]:
        """Limits of the integer type that holds the grid: uint8, or int8 if negative."""
        return (-128, 127) if self.low < 0 else (0, 255)

    def forward(self, x: Tensor) -> Tensor:
        """The nearest values of the grid; same shape, float32."""
        low, high = self.limits
        if (self.low, self.high) != (low, high):
            bounds = [(q - self.zero_point) * self.scale for q in (self.low, self.high)]
            x = torch.clamp(x, bounds[0], bounds[1])
        dtype = torch.int8 if low < 0 else torch.uint8
        grid = (self.scale, self.zero_point, low, high, dtype)
        codes = _ops.quantize_per_tensor.default(x, *grid)
        values: Tensor = _ops.dequantize_per_tensor.default(codes, *grid)
        return values

    def extra_repr(self) -> str:
        """Step and integers."""
        return f"scale={self.scale:.4g}, zero_point={self.zero_point}, {self.low}..{self.high}"


class IntegerWeight(nn.Module):
    """A parametrization: float weight from int8 integers and a scale per channel.

    Args:
        scale: (channels,) float32.
        axis: Channel axis.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: Tensor, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("scale", scale.detach().float().clone())
        self.register_buffer("zero_point", torch.zeros_like(self.scale, dtype=torch.int32))

    def forward(self, integers: Tensor) -> Tensor:
        """``integers * scale``, float32."""
        values: Tensor = _ops.dequantize_per_channel.default(
            integers, self.scale, self.zero_point, self.axis, -127, 127, torch.int8
        )
        return values


class Weighted(nn.Module):
    """A convolution or linear layer with an integer weight.

    Args:
        function: Name of the operator in ``torch.nn.functional``.
        integers: int8 weight.
        scale: (channels,) float32.
        axis: Channel axis of the weight.
        bias: Float bias, or None.
        options: Keyword arguments of the operator.
    """

    integers: Tensor
    bias: Tensor | None

    def __init__(
        self,
        function: str,
        integers: Tensor,
        scale: Tensor,
        axis: int,
        bias: Tensor | None,
        options: dict[str, object] | None = None,
    ) -> None:
        super().__init__()
        self.function, self.options = function, options or {}
        # Channels-last weights would make outputs so, whose pooling is exported as strides.
        self.register_buffer("integers", integers.clone(memory_format=torch.contiguous_format))
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.weight = IntegerWeight(scale, axis)

    def forward(self, x: Tensor) -> Tensor:
        """What the float layer computes with this weight."""
        operator = getattr(nn.functional, self.function)
        out: Tensor = operator(x, self.weight(self.integers), self.bias, **self.options)
        return out


class Applied(nn.Module):
    """An operator of ``torch.nn.functional`` with keyword arguments, tensors among them.

    Args:
        function: The operator's name.
        options: Its keyword arguments.
    """

    def __init__(self, function: str, options: dict[str, object]) -> None:
        super().__init__()
        self.function = function
        self.options = {k: v for k, v in options.items() if not isinstance(v, Tensor)}
        self.tensors = [k for k, v in options.items() if isinstance(v, Tensor)]
        for key in self.tensors:
            value: Any = options[key]
            self.register_buffer(key, value.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """The operator's result."""
        tensors = {key: getattr(self, key) for key in self.tensors}
        out: Tensor = getattr(nn.functional, self.function)(x, **self.options, **tensors)
        return out


TOP = 255

Grid = tuple[float, int]


def product_grid(grid: Grid, factor: float) -> Grid:
    """Grid of a quantized tensor times a number: its integers stay, or are mirrored.

    Args:
        grid: Scale and zero point of the tensor, uint8.
        factor: The number.
    """
    scale, zero = grid
    if factor == 0:
        return 1.0, 0
    return scale * abs(factor), zero if factor > 0 else TOP - zero


def sum_grid(grid: Grid, term: float) -> tuple[float, Grid]:
    """The number that is really added to a quantized tensor, and the grid of the sum.

    The number is rounded to whole steps and moves the zero point; where that leaves uint8, the grid
    becomes coarser, such that it reaches from zero to the far end.

    Args:
        grid: Scale and zero point of the tensor, uint8.
        term: The number.
    """
    scale, zero = grid
    steps = round(term / scale)
    moved = zero - steps
    if moved < 0:
        total_grid = (TOP - moved) / TOP * scale, 0
    elif moved > TOP:
        total_grid = moved / TOP * scale, TOP
    else:
        total_grid = scale, moved
    return steps * scale, total_grid


# ---- Single int8 modules of torch.ao as float layers ---------------------------------------------


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
    if module.transposed:
        names.append("output_padding")
    if module.padding_mode != "zeros":
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
