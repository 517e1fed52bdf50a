"""The quantizer that NNCF's hooks run on weights: PWLQ levels on its signed 8-bit grid."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from zaq_nncf._compat import (
    BaseQuantizer,
    DisableTorchFunction,
    PTQuantizerSpec,
    QuantizationScheme,
    SymmetricQuantizer,
)
from zaq_nncf.quantizing import freeze_own_ranges, nncf_spec, plain_spec, symmetric_quantize
from zaq_plugin.fake_quantize import PWLQPerChannelFakeQuantize
from zaq_plugin.pwlq import QuantSpec
from zaq_plugin.pwlq.registry import spec_from_json

INT8 = (-128, 127)


class PWLQWeightQuantizer(SymmetricQuantizer):
    """PWLQ levels of a weight, or those of a `UniformSpec`, on NNCF's signed 8-bit grid.

    To NNCF it is a symmetric 8-bit quantizer with a narrow range, which is what its levels are
    stored in: every level is ``scale * k`` with an integer k from -127 to 127.

    Args:
        qspec: NNCF's description: 8 bits, symmetric, narrow range.
        spec: The number format.
        ch_axis: Axis of the output channels; None for one grid per tensor.
        weight: Name of the parameter in the model, such as ``layer1.0.conv1.weight``.
        read_elsewhere: Whether the parameter is also read without a quantizer.
    """

    def __init__(
        self,
        qspec: PTQuantizerSpec,
        spec: QuantSpec,
        ch_axis: int | None,
        weight: str,
        read_elsewhere: bool = False,
    ) -> None:
        super().__init__(qspec)
        self.signed = True
        self.grid = PWLQPerChannelFakeQuantize(spec, ch_axis)
        self.grid.disable_observer()  # edges are solved once, at the first forward
        self.weight, self.read_elsewhere = weight, read_elsewhere
        self.source: str | None = None  # the hook on the layer's input, once that is known
        freeze_own_ranges(self)

    @property
    def spec(self) -> QuantSpec:
        """The number format."""
        return self.grid.spec

    def quantize(self, x: Tensor, execute_traced_op_as_identity: bool = False) -> Tensor:
        """The weight on its levels; same shape."""
        with DisableTorchFunction():
            first = next(self.grid.buffers(), None)
            if first is not None and first.device != x.device:
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
            "qspec": plain_spec(self._qspec),
            "spec": self.spec.to_json(),
            "ch_axis": self.grid.ch_axis,
            "weight": self.weight,
            "source": self.source,
            "read_elsewhere": self.read_elsewhere,
        }

    @classmethod
    def from_config(cls, state: dict[str, Any]) -> PWLQWeightQuantizer:
        """Undo `get_config`."""
        spec = spec_from_json(state["spec"])
        quantizer = cls(nncf_spec(state["qspec"]), spec, state["ch_axis"], state["weight"])
        quantizer.read_elsewhere = state.get("read_elsewhere", False)
        quantizer.source = state.get("source")
        return quantizer

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        earlier = state_dict.pop(prefix + "bias_shift", None)  # files of earlier versions have it
        if isinstance(earlier, Tensor):
            state_dict.setdefault(prefix + "grid.bias_shift", earlier)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def pwlq_weight(
    native: BaseQuantizer,
    spec: QuantSpec,
    ch_axis: int | None,
    weight: str,
    read_elsewhere: bool = False,
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
    axis = ch_axis if native.per_channel else None
    return PWLQWeightQuantizer(described, spec, axis, weight, read_elsewhere)
