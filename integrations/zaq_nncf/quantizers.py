"""The quantizers that NNCF's hooks run: PWLQ for weights, uniform grids for activations.

Each is one of NNCF's own classes, so that NNCF places it, saves it, strips it and finds it in the
graph; the arithmetic is in its child ``grid``, one of `zaq_plugin`'s fake-quantizers, so that what
zero-shot fine-tuning knows about those holds here, too. NNCF recognises a quantizer in the graph by
the *name* of the function that did the work, which is why two functions here carry its names.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zaq_nncf._compat import (
    AsymmetricQuantizer,
    BaseQuantizer,
    DisableTorchFunction,
    PTQuantizerSpec,
    QuantizationScheme,
    SymmetricQuantizer,
    handle_torch_function,
    has_torch_function_unary,
)
from zaq_plugin.fake_quantize import ActivationFakeQuantize, PWLQPerChannelFakeQuantize
from zaq_plugin.observers import PercentileObserver, TopKMedianObserver
from zaq_plugin.pwlq import QuantSpec
from zaq_plugin.pwlq.spec import spec_from_json

INT8 = (-128, 127)


def symmetric_quantize(x: Tensor, grid: nn.Module) -> Tensor:
    """A tensor on a grid, as one node of NNCF's graph."""
    if has_torch_function_unary(x):
        traced: Tensor = handle_torch_function(symmetric_quantize, (x,), x, grid)
        return traced
    quantized: Tensor = grid(x)
    return quantized


def asymmetric_quantize(x: Tensor, grid: nn.Module) -> Tensor:
    """A tensor on a grid, as one node of NNCF's graph."""
    if has_torch_function_unary(x):
        traced: Tensor = handle_torch_function(asymmetric_quantize, (x,), x, grid)
        return traced
    quantized: Tensor = grid(x)
    return quantized


def _plain_spec(qspec: PTQuantizerSpec) -> dict[str, Any]:
    """NNCF's description of a quantizer as JSON values: its enumeration as text."""
    state = dict(qspec.get_state())
    state["mode"] = str(getattr(state["mode"], "value", state["mode"]))
    state["scale_shape"] = list(state["scale_shape"])
    return state


def _nncf_spec(state: dict[str, Any]) -> PTQuantizerSpec:
    mode, shape = QuantizationScheme(state["mode"]), tuple(state["scale_shape"])
    return PTQuantizerSpec.from_state({**state, "mode": mode, "scale_shape": shape})


def _freeze_own_ranges(quantizer: BaseQuantizer) -> None:
    """NNCF's own range parameters are not in use: they neither train nor follow anything."""
    for parameter in quantizer.parameters(recurse=False):
        parameter.requires_grad_(False)


class PWLQWeightQuantizer(SymmetricQuantizer):
    """PWLQ levels of a weight, or those of a `UniformSpec`, on NNCF's signed 8-bit grid.

    To NNCF it is a symmetric 8-bit quantizer with a narrow range, which is what its levels are
    stored in: every level is ``scale * k`` with an integer k from -127 to 127.

    Args:
        qspec: NNCF's description: 8 bits, symmetric, narrow range.
        spec: The number format.
        ch_axis: Axis of the output channels; None for one grid per tensor.
        weight: Name of the parameter in the model, such as ``layer1.0.conv1.weight``.
    """

    bias_shift: Tensor

    def __init__(
        self, qspec: PTQuantizerSpec, spec: QuantSpec, ch_axis: int | None, weight: str
    ) -> None:
        super().__init__(qspec)
        self.signed = True
        self.grid = PWLQPerChannelFakeQuantize(spec, ch_axis)
        self.grid.disable_observer()  # edges are solved once, at the first forward
        self.weight = weight
        self.source: str | None = None  # the hook on the layer's input, once that is known
        self.bias: str | None = None  # the parameter that bias_shift was taken out of
        self.register_buffer("bias_shift", torch.empty(0))
        _freeze_own_ranges(self)

    @property
    def spec(self) -> QuantSpec:
        """The number format."""
        return self.grid.spec

    def quantize(self, x: Tensor, execute_traced_op_as_identity: bool = False) -> Tensor:
        """The weight on its levels; same shape."""
        with DisableTorchFunction():
            if self.bias_shift.device != x.device:
                self.to(x.device)
        return symmetric_quantize(x, self.grid)

    def _forward_impl(self, x: Tensor) -> Tensor:
        return self.quantize(x)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale (float32) and zero point (int32, zeros) of the int8 grid below, (channels,).

        Raises:
            ValueError: no weight was seen yet, or the format has no int8 levels.
        """
        scale, zero_point = self.grid.calculate_qparams()
        return scale.detach(), zero_point

    def get_parameters_for_torch_fq(self) -> tuple[int, int, Tensor, Tensor]:
        """What ``nncf.strip`` asks for: integer range, scale and zero point."""
        return (*INT8, *self.calculate_qparams())

    def get_input_low_input_high(self) -> tuple[Tensor, Tensor]:
        """What ``nncf.strip`` clamps the weight to: the ends of the int8 grid."""
        reach = (127 * self.calculate_qparams()[0]).reshape(self.scale_shape)
        return -reach, reach

    def enable_gradients(self) -> None:
        """Nothing: NNCF's own scale is not in use."""

    def enable_quantization(self) -> None:
        """Put the weight on its levels."""
        super().enable_quantization()
        self.grid.enable_fake_quant()

    def disable_quantization(self) -> None:
        """Let the float weight pass."""
        super().disable_quantization()
        self.grid.disable_fake_quant()

    def extra_repr(self) -> str:
        """The weight and its format."""
        return f"{self.weight}, {self.spec.label}"

    def get_config(self) -> dict[str, Any]:
        """Everything that `from_config` needs, as JSON values."""
        return {
            "qspec": _plain_spec(self._qspec),
            "spec": self.spec.to_json(),
            "ch_axis": self.grid.ch_axis,
            "weight": self.weight,
            "source": self.source,
            "bias": self.bias,
        }

    @classmethod
    def from_config(cls, state: dict[str, Any]) -> PWLQWeightQuantizer:
        """Undo `get_config`."""
        spec = spec_from_json(state["spec"])
        made = cls(_nncf_spec(state["qspec"]), spec, state["ch_axis"], state["weight"])
        made.source, made.bias = state.get("source"), state.get("bias")
        return made

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        saved = state_dict.get(prefix + "bias_shift")
        if isinstance(saved, Tensor) and saved.shape != self.bias_shift.shape:
            self.bias_shift = torch.empty(saved.shape, device=self.bias_shift.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class _ActivationMixin:
    """What both activation quantizers share: a uniform grid per tensor, of 2 to 8 bits.

    The range is what NNCF measured. `nncf.strip`'s fake-quantizers compute exactly the same.
    """

    grid: ActivationFakeQuantize

    def _make_grid(
        self,
        symmetric: bool,
        signed: bool,
        bits: int,
        learnable: bool,
        observer: Callable[..., Any] | None = None,
    ) -> None:
        low, high = _integers(bits, symmetric, signed)
        self.grid = ActivationFakeQuantize(
            observer or default_observer(bits),
            symmetric=symmetric and signed,
            learnable=learnable,
            dtype=torch.qint8 if low < 0 else torch.quint8,
            quant_min=low,
            quant_max=high,
        )
        self.grid.disable_observer()
        _freeze_own_ranges(self)

    @property
    def bits(self) -> int:
        """Width of the grid."""
        return self.grid.bits

    def narrow(self, bits: int, observer: Callable[..., Any] | None = None) -> None:
        """Another width; the range is to be observed anew."""
        old = self.grid
        symmetric, signed = isinstance(self, SymmetricQuantizer), old.quant_min < 0
        self._make_grid(symmetric, signed, bits, old.learnable, observer)
        self.grid.to(old.zero_point.device)

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Spread the grid over a range of values, two scalars."""
        grid, watch = self.grid, self.grid.activation_post_process
        watch.min_val.copy_(low.reshape(()))
        watch.max_val.copy_(high.reshape(()))
        watch.num_batches.fill_(1)
        scale, zero_point = watch.qparams()
        grid.scale.copy_(scale)
        grid.zero_point.copy_(zero_point)

    def _forward_impl(self, x: Tensor) -> Tensor:
        return self.quantize(x)

    def quantize(self, x: Tensor, execute_traced_op_as_identity: bool = False) -> Tensor:
        """The activation on its grid; same shape."""
        raise NotImplementedError

    def _follow(self, x: Tensor) -> None:
        with DisableTorchFunction():
            if self.grid.zero_point.device != x.device:
                self.to(x.device)  # type: ignore[attr-defined]

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale (float32) and zero point (int32), shape (1,)."""
        return self.grid.calculate_qparams()

    def get_parameters_for_torch_fq(self) -> tuple[int, int, Tensor, Tensor]:
        """What ``nncf.strip`` asks for: integer range, scale and zero point."""
        scale, zero_point = self.calculate_qparams()
        return self.grid.quant_min, self.grid.quant_max, scale, zero_point

    def get_input_low_input_high(self) -> tuple[Tensor, Tensor]:
        """The ends of the range."""
        low, high, scale, zero_point = self.get_parameters_for_torch_fq()
        return (low - zero_point) * scale, (high - zero_point) * scale

    def enable_gradients(self) -> None:
        """Nothing: NNCF's own range is not in use."""

    def enable_quantization(self) -> None:
        """Put activations on the grid."""
        super().enable_quantization()  # type: ignore[misc]
        self.grid.enable_fake_quant()

    def disable_quantization(self) -> None:
        """Let activations pass."""
        super().disable_quantization()  # type: ignore[misc]
        self.grid.disable_fake_quant()

    def extra_repr(self) -> str:
        """Width and integers."""
        return f"bits={self.bits}, {self.grid.quant_min}..{self.grid.quant_max}"

    def get_config(self) -> dict[str, Any]:
        """Everything that `from_config` needs, as JSON values."""
        return {
            "qspec": _plain_spec(self._qspec),  # type: ignore[attr-defined]
            "bits": self.bits,
            "signed": self.grid.quant_min < 0,
            "learnable": self.grid.learnable,
        }

    @classmethod
    def from_config(cls, state: dict[str, Any]) -> Any:
        """Undo `get_config`."""
        make: Any = cls
        qspec = _nncf_spec(state["qspec"])
        return make(qspec, state["bits"], state["signed"], state["learnable"])


class SymmetricActivationQuantizer(_ActivationMixin, SymmetricQuantizer):
    """NNCF's symmetric activations: zero point 0, integers signed or not as it found them.

    Args:
        qspec: NNCF's description.
        bits: Width, 2 to 8.
        signed: Whether negative values occur.
        learnable: Train the step.
    """

    def __init__(
        self, qspec: PTQuantizerSpec, bits: int = 8, signed: bool = True, learnable: bool = False
    ) -> None:
        SymmetricQuantizer.__init__(self, qspec)
        self.signed = signed
        self._make_grid(True, signed, bits, learnable)

    def quantize(self, x: Tensor, execute_traced_op_as_identity: bool = False) -> Tensor:
        """The activation on its grid; same shape."""
        self._follow(x)
        return symmetric_quantize(x, self.grid)


class AsymmetricActivationQuantizer(_ActivationMixin, AsymmetricQuantizer):
    """NNCF's asymmetric activations: unsigned integers and a zero point.

    Args: as `SymmetricActivationQuantizer`; ``signed`` is accepted for its sake.
    """

    def __init__(
        self, qspec: PTQuantizerSpec, bits: int = 8, signed: bool = False, learnable: bool = False
    ) -> None:
        AsymmetricQuantizer.__init__(self, qspec)
        self._make_grid(False, False, bits, learnable)

    def quantize(self, x: Tensor, execute_traced_op_as_identity: bool = False) -> Tensor:
        """The activation on its grid; same shape."""
        self._follow(x)
        return asymmetric_quantize(x, self.grid)


ActivationQuantizer = SymmetricActivationQuantizer | AsymmetricActivationQuantizer


def default_observer(bits: int) -> Callable[..., Any]:
    """What sets an activation's range anew. Few levels are better spent where most values are."""
    if bits == 8:
        return TopKMedianObserver
    return partial(PercentileObserver, percent=99.9)


def _integers(bits: int, symmetric: bool, signed: bool) -> tuple[int, int]:
    if symmetric and signed:
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return 0, 2**bits - 1


def pwlq_weight(
    native: BaseQuantizer, spec: QuantSpec, ch_axis: int | None, weight: str
) -> PWLQWeightQuantizer:
    """Our quantizer in the place of one that NNCF made for a weight."""
    qspec = native._qspec
    described = PTQuantizerSpec(
        num_bits=8,
        mode=QuantizationScheme.SYMMETRIC,
        signedness_to_force=True,
        narrow_range=True,
        half_range=False,
        scale_shape=tuple(qspec.scale_shape),
        logarithm_scale=False,
        is_quantized_on_export=False,
    )
    return PWLQWeightQuantizer(described, spec, ch_axis if native.per_channel else None, weight)


def uniform_activation(
    native: BaseQuantizer, bits: int = 8, learnable: bool = False
) -> ActivationQuantizer:
    """Our quantizer in the place of one that NNCF made and filled for an activation."""
    symmetric = isinstance(native, SymmetricQuantizer)
    kind = SymmetricActivationQuantizer if symmetric else AsymmetricActivationQuantizer
    made: ActivationQuantizer = kind(native._qspec, bits, bool(native.signed), learnable)
    with torch.no_grad():
        low, high, scale, zero_point = native.get_parameters_for_torch_fq()
        top = ((high - zero_point) * scale).max()
        bottom = -top if symmetric and native.signed else ((low - zero_point) * scale).min()
        made.to(scale.device)
        made.set_range(bottom, top)
        if bits == 8:  # NNCF's own scale, to the last bit
            made.grid.scale.copy_(scale.reshape(1))
            made.grid.zero_point.copy_(zero_point.reshape(1))
    return made
