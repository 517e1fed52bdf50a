"""The backend configuration that makes stock ``convert_fx`` put weights on PWLQ levels.

Stock conversion rounds every weight to a uniform grid. Here the entry that turns a float layer
into a reference quantized layer is a small object of ours: it first snaps the weight to its
levels, all of which are ``scale * int8``, and then calls the stock class. The stock rounding
reproduces such a weight bit for bit, and everything after it (lowering, kernels) is untouched.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.ao.nn.intrinsic.qat as nniqat
import torch.ao.nn.quantized as nnq
import torch.ao.nn.quantized.reference as nnqr
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantizeBase, ObserverBase
from torch.ao.quantization.backend_config import (
    BackendConfig,
    BackendPatternConfig,
    get_native_backend_config,
)

from zaq_fx._compat import note_host, use_exact_batch_norm
from zaq_fx.convolutions import TRAINED
from zaq_plugin.fake_quantize import (
    ActivationFakeQuantize,
    PWLQActivationFakeQuantize,
    PWLQPerChannelFakeQuantize,
)
from zaq_plugin.observers import (
    MinMaxObserver,
    PercentileObserver,
    PWLQPerChannelObserver,
    TopKMedianObserver,
    weight_format,
)
from zaq_plugin.pwlq import fake_quantize

OBSERVERS = (MinMaxObserver, PercentileObserver, TopKMedianObserver, PWLQPerChannelObserver)
FAKE_QUANTIZERS = (ActivationFakeQuantize, PWLQActivationFakeQuantize, PWLQPerChannelFakeQuantize)

# The host asks isinstance(..., ObserverBase); its bases are abstract base classes.
for _observer in OBSERVERS:
    ObserverBase.register(_observer)
for _fake in FAKE_QUANTIZERS:
    FakeQuantizeBase.register(_fake)


class SnappedReference:
    """Stands where the host expects a reference module class; makes the stock one.

    Args:
        reference: The stock class, such as ``torch.ao.nn.quantized.reference.Conv2d``.
    """

    def __init__(self, reference: type[nn.Module]) -> None:
        self.reference = reference

    def from_float(self, module: nn.Module, weight_qparams: dict[str, Any]) -> nn.Module:
        """The stock reference module of a float layer, its weight on the levels.

        Layers whose qconfig is not ours pass through as they are.

        Raises:
            ValueError: the weight is not float32.
        """
        form = weight_format(weight_qparams.get("scale"))
        if form is not None:
            weight: Tensor = module.weight  # type: ignore[assignment]
            if weight.dtype != torch.float32:
                raise ValueError(
                    f"{type(module).__name__} has {weight.dtype} weights, but torch.ao's int8 "
                    "kernels work with float32 models. Call model.float() before preparing."
                )
            levels = fake_quantize(weight.detach(), form.spec, form.ch_axis, edges=form.edges)
            module = with_parameter(module, "weight", levels)
        layer: nn.Module = self.reference.from_float(module, weight_qparams)  # type: ignore[attr-defined]
        if self.reference in UNLOWERED and not kernel_is_right(layer):
            layer.__class__ = UNLOWERED[self.reference]
        return layer

    def __repr__(self) -> str:
        return f"SnappedReference({self.reference.__name__})"


class ConvTranspose1d(nnqr.ConvTranspose1d):
    """Not lowered, see `kernel_is_right`: the host lowers exact types only."""


class ConvTranspose2d(nnqr.ConvTranspose2d):
    """See `ConvTranspose1d`."""


class ConvTranspose3d(nnqr.ConvTranspose3d):
    """See `ConvTranspose1d`."""


UNLOWERED: dict[Any, Any] = {
    kind.__bases__[0]: kind for kind in (ConvTranspose1d, ConvTranspose2d, ConvTranspose3d)
}
_KERNELS: dict[Any, Any] = {
    nnqr.ConvTranspose1d: nnq.ConvTranspose1d,
    nnqr.ConvTranspose2d: nnq.ConvTranspose2d,
    nnqr.ConvTranspose3d: nnq.ConvTranspose3d,
}


@torch.no_grad()
def kernel_is_right(reference: nn.Module) -> bool:
    """Whether the int8 kernel of a transposed convolution computes what the float operator does.

    Those of several engines do not for some numbers of channels (onednn, which x86 stands for:
    unless a group has as many inputs as outputs). So the kernel is tried: on noise, with the
    layer's own weight and options.

    Args:
        reference: A reference quantized transposed convolution.

    Returns:
        False also if the engine has no such kernel.
    """
    layer: Any = reference
    generator = torch.Generator().manual_seed(0)
    shape = (1, layer.in_channels, *[2 * max(layer.dilation) + 1] * len(layer.kernel_size))
    noise = torch.quantize_per_tensor(
        torch.rand(shape, generator=generator) - 0.25, 1 / 127, 32, torch.quint8
    )
    plain = copy.deepcopy(layer).cpu()
    expected = plain(noise.dequantize())
    scale = float((expected.max() - expected.min()).clamp(min=1e-6)) / 200
    zero_point = int((-expected.min() / scale).round().clamp(0, 255)) + 20
    zero_point = min(zero_point, 255)
    try:
        kernel = _KERNELS[type(reference)].from_reference(plain, scale, zero_point)
        output = kernel(noise).dequantize()
    except (RuntimeError, AssertionError):
        return False
    low, high = -zero_point * scale, (255 - zero_point) * scale
    return bool((output - expected.clamp(low, high)).abs().max() <= 1.5 * scale)


def with_parameter(module: nn.Module, name: str, value: Tensor | None) -> nn.Module:
    """A shallow copy of a module with another parameter: neither module nor tensor is changed."""
    twin = copy.copy(module)
    twin._parameters = dict(module._parameters)
    twin._parameters[name] = (
        None if value is None else nn.Parameter(value.detach(), requires_grad=True)
    )
    return twin


class _ExactBatchNorm:
    """A QAT Conv-BN that takes the host's exact path if some gamma is zero."""

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> nn.Module:
        layer: nn.Module = super().from_float(mod, use_precomputed_fake_quant)  # type: ignore[misc]
        if bool((layer.bn.weight == 0).any()):  # type: ignore[union-attr]
            use_exact_batch_norm(layer)
        return layer


class ConvBn1d(_ExactBatchNorm, nniqat.ConvBn1d):
    """See `_ExactBatchNorm`."""


class ConvBn2d(_ExactBatchNorm, nniqat.ConvBn2d):
    """See `_ExactBatchNorm`."""


class ConvBn3d(_ExactBatchNorm, nniqat.ConvBn3d):
    """See `_ExactBatchNorm`."""


class ConvBnReLU1d(_ExactBatchNorm, nniqat.ConvBnReLU1d):
    """See `_ExactBatchNorm`."""


class ConvBnReLU2d(_ExactBatchNorm, nniqat.ConvBnReLU2d):
    """See `_ExactBatchNorm`."""


class ConvBnReLU3d(_ExactBatchNorm, nniqat.ConvBnReLU3d):
    """See `_ExactBatchNorm`."""


_EXACT = {
    base: kind
    for kind in (ConvBn1d, ConvBn2d, ConvBn3d, ConvBnReLU1d, ConvBnReLU2d, ConvBnReLU3d)
    for base in kind.__bases__[1:]
}
_WEIGHTED = (
    nnqr.Conv1d,
    nnqr.Conv2d,
    nnqr.Conv3d,
    nnqr.ConvTranspose1d,
    nnqr.ConvTranspose2d,
    nnqr.ConvTranspose3d,
    nnqr.Linear,
)


def pwlq_backend_config(base: BackendConfig | None = None) -> BackendConfig:
    """The backend configuration to pass to prepare_fx, prepare_qat_fx and convert_fx.

    Args:
        base: The configuration to start from; torch's native one (fbgemm, x86, onednn, qnnpack).

    Returns:
        A new configuration with the same patterns, in which convolutions and linear layers go
        through `SnappedReference`, and Conv-BN survives a zero gamma in training.
    """
    note_host()
    config = BackendConfig("zaq_pwlq")
    for pattern in (base or get_native_backend_config()).configs:
        ours = copy.copy(pattern)
        if ours.reference_quantized_module in _WEIGHTED:
            ours.reference_quantized_module = SnappedReference(ours.reference_quantized_module)  # type: ignore[assignment]
        if ours.pattern in TRAINED:
            ours.qat_module = TRAINED[ours.pattern]
            config.set_backend_pattern_config(_as_pattern(ours, ours.qat_module))
        if ours.qat_module in _EXACT:
            ours.qat_module = _EXACT[ours.qat_module]
        config.set_backend_pattern_config(ours)
        if ours.pattern in _EXACT:
            config.set_backend_pattern_config(_as_pattern(ours, _EXACT[ours.pattern]))
    return config


def _as_pattern(config: BackendPatternConfig, cls: type[nn.Module]) -> BackendPatternConfig:
    variant = copy.copy(config)
    variant.set_pattern(cls)
    return variant
