"""Every private or undocumented habit of torch, ONNX Runtime and OpenVINO that we lean on.

``tests/integrations/zaq_onnx/test_host_facts.py`` pins each of them: it fails loudly, naming the
fact, when a new version changes one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.quantized as nnq
import torch.ao.nn.quantized.reference as nnqr
from torch import nn
from torch.ao.quantization.fx import _decomposed  # registers the quantized_decomposed operators

QUANTIZED_LIBRARY = _decomposed.quantized_decomposed_lib

SCOPES = "pkg.torch.onnx.name_scopes"
"""Key of an exported node's metadata that holds its modules' names, as a Python list."""

CONVOLUTIONS: dict[type[nn.Module], str] = {
    nnq.Conv1d: "conv1d",
    nnq.Conv2d: "conv2d",
    nnq.Conv3d: "conv3d",
    nnq.ConvTranspose1d: "conv_transpose1d",
    nnq.ConvTranspose2d: "conv_transpose2d",
    nnq.ConvTranspose3d: "conv_transpose3d",
    nnqr.Conv1d: "conv1d",
    nnqr.Conv2d: "conv2d",
    nnqr.Conv3d: "conv3d",
    nnqr.ConvTranspose1d: "conv_transpose1d",
    nnqr.ConvTranspose2d: "conv_transpose2d",
    nnqr.ConvTranspose3d: "conv_transpose3d",
}
LINEAR: tuple[type[nn.Module], ...] = (nnq.Linear, nnqr.Linear)
RELU: tuple[type[nn.Module], ...] = (
    nniq.ConvReLU1d,
    nniq.ConvReLU2d,
    nniq.ConvReLU3d,
    nniq.LinearReLU,
)
ADDING: tuple[type[nn.Module], ...] = (nniq.ConvAdd2d, nniq.ConvAddReLU2d)
ACTIVATIONS: dict[type[nn.Module], str] = {
    nnq.Hardswish: "hardswish",
    nnq.Sigmoid: "sigmoid",
    nnq.LeakyReLU: "leaky_relu",
    nnq.ELU: "elu",
    nnq.Softmax: "softmax",
    nnq.LayerNorm: "layer_norm",
    nnq.GroupNorm: "group_norm",
    nnq.InstanceNorm1d: "instance_norm",
    nnq.InstanceNorm2d: "instance_norm",
    nnq.InstanceNorm3d: "instance_norm",
}
FIXED_GRIDS: dict[Any, tuple[float, int]] = {
    torch.sigmoid: (1 / 256, 0),
    nn.functional.sigmoid: (1 / 256, 0),
    nn.functional.hardsigmoid: (1 / 256, 0),
    torch.tanh: (2 / 256, 128),
    nn.Sigmoid: (1 / 256, 0),
    nn.Hardsigmoid: (1 / 256, 0),
    nn.Tanh: (2 / 256, 128),
    "sigmoid": (1 / 256, 0),
    "sigmoid_": (1 / 256, 0),
    "tanh": (2 / 256, 128),
    "tanh_": (2 / 256, 128),
}
"""Scale and zero point that torch's int8 kernels of these operators give their output."""

ORT_INTEGER = (
    "QLinear",
    "QGemm",
    "QAttention",
    "MatMulInteger",
    "ConvInteger",
    "DynamicQuantize",
    "NhwcMaxPool",
)
"""Beginnings of the names of ONNX Runtime's integer kernels."""

ORT_REQUANTIZER = "WeightBiasQuantization"
"""The optimizer that silently rounds float weights between quantized activations to 8 bits."""

PRECISION, LAYER = "runtimePrecision", "layerType"
"""Keys of OpenVINO's runtime model: what a node computes in, and what it is."""


def quantized_weight(module: nn.Module) -> torch.Tensor:
    """The quantized weight tensor (torch.qint8) of a converted or reference layer."""
    stored: Any = module
    if isinstance(module, tuple(c for c in CONVOLUTIONS if c.__module__.startswith(_REFERENCE))):
        weight: torch.Tensor = stored.get_quantized_weight()
        return weight
    if isinstance(module, nnqr.Linear):
        return stored.get_quantized_weight()
    return stored.weight()


def layer_bias(module: nn.Module) -> torch.Tensor | None:
    """The float bias of a converted or reference layer."""
    bias: Any = module.bias
    return bias() if callable(bias) else bias


_REFERENCE = nnqr.Conv2d.__module__.rpartition(".modules")[0]
