"""The quantizers that NNCF's hooks run on activations: uniform grids of 2 to 8 bits."""

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
    SymmetricQuantizer,
)
from zaq_nncf.quantizing import (
    asymmetric_quantize,
    freeze_own_ranges,
    nncf_spec,
    plain_spec,
    symmetric_quantize,
)
from zaq_plugin.fake_quantize import ActivationFakeQuantize
from zaq_plugin.observers import PercentileObserver, TopKMedianObserver


class _ActivationMixin:
    """What both activation quantizers share: a uniform grid per tensor, of 2 to 8 bits.

    The range is what NNCF measured. `nncf.strip`'s fake-quantizers compute exactly the same.
    """

    grid: ActivationFakeQuantize
    on_grid: Callable[[Tensor, nn.Module], Tensor]
    """The function that NNCF finds in its graph."""

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
        freeze_own_ranges(self)

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
        with DisableTorchFunction():
            if self.grid.zero_point.device != x.device:
                self.to(x.device)  # type: ignore[attr-defined]
        return self.on_grid(x, self.grid)

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
            "qspec": plain_spec(self._qspec),  # type: ignore[attr-defined]
            "bits": self.bits,
            "signed": self.grid.quant_min < 0,
            "learnable": self.grid.learnable,
        }

    @classmethod
    def from_config(cls, state: dict[str, Any]) -> Any:
        """Undo `get_config`."""
        make: Any = cls
        qspec = nncf_spec(state["qspec"])
        return make(qspec, state["bits"], state["signed"], state["learnable"])


class SymmetricActivationQuantizer(_ActivationMixin, SymmetricQuantizer):
    """NNCF's symmetric activations: zero point 0, integers signed or not as it found them.

    Args:
        qspec: NNCF's description.
        bits: Width, 2 to 8.
        signed: Whether negative values occur.
        learnable: Train the step.
    """

    on_grid = staticmethod(symmetric_quantize)

    def __init__(
        self, qspec: PTQuantizerSpec, bits: int = 8, signed: bool = True, learnable: bool = False
    ) -> None:
        SymmetricQuantizer.__init__(self, qspec)
        self.signed = signed
        self._make_grid(True, signed, bits, learnable)


class AsymmetricActivationQuantizer(_ActivationMixin, AsymmetricQuantizer):
    """NNCF's asymmetric activations: unsigned integers and a zero point.

    Args: as `SymmetricActivationQuantizer`; ``signed`` is accepted for its sake.
    """

    on_grid = staticmethod(asymmetric_quantize)

    def __init__(
        self, qspec: PTQuantizerSpec, bits: int = 8, signed: bool = False, learnable: bool = False
    ) -> None:
        AsymmetricQuantizer.__init__(self, qspec)
        self._make_grid(False, False, bits, learnable)


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


def uniform_activation(
    native: BaseQuantizer, bits: int = 8, learnable: bool = False
) -> ActivationQuantizer:
    """Our quantizer in the place of one that NNCF made and filled for an activation."""
    symmetric = isinstance(native, SymmetricQuantizer)
    kind = SymmetricActivationQuantizer if symmetric else AsymmetricActivationQuantizer
    quantizer: ActivationQuantizer = kind(native._qspec, bits, bool(native.signed), learnable)
    with torch.no_grad():
        low, high, scale, zero_point = native.get_parameters_for_torch_fq()
        top = ((high - zero_point) * scale).max()
        bottom = -top if symmetric and native.signed else ((low - zero_point) * scale).min()
        quantizer.to(scale.device)
        quantizer.set_range(bottom, top)
        if bits == 8:  # NNCF's own scale, to the last bit
            quantizer.grid.scale.copy_(scale.reshape(1))
            quantizer.grid.zero_point.copy_(zero_point.reshape(1))
    return quantizer
