"""The quantizers that NNCF's hooks run on weights: ours, and those that stay NNCF's own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from zaq_nncf._compat import (
    AsymmetricQuantizer,
    BaseQuantizer,
    DisableTorchFunction,
    PTQuantizerSpec,
    QuantizationScheme,
    SymmetricQuantizer,
    decode_hook_name,
)
from zaq_nncf.activation_quantizers import ActivationQuantizer
from zaq_nncf.quantizing import freeze_own_ranges, nncf_spec, plain_spec, symmetric_quantize
from zaq_plugin.fake_quantize import PWLQPerChannelFakeQuantize
from zaq_plugin.graph import attribute_at
from zaq_plugin.pwlq import QuantSpec
from zaq_plugin.pwlq.registry import spec_from_json

# ---- PWLQ levels on NNCF's signed 8-bit grid -----------------------------------------------------

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


# ---- NNCF's own, and which parameter each of them sits on ----------------------------------------


class _NamedMixin:
    """NNCF's arithmetic; what is added is the parameter's name.

    Attributes:
        weight: Name of the parameter in the model.
        read_elsewhere: Whether the parameter is also read without this or an equal quantizer.
    """

    weight: str
    read_elsewhere: bool

    def get_config(self) -> dict[str, Any]:
        """Everything that `from_config` needs, as JSON values."""
        qspec = plain_spec(self._qspec)  # type: ignore[attr-defined]
        return {"qspec": qspec, "weight": self.weight, "read_elsewhere": self.read_elsewhere}

    @classmethod
    def from_config(cls, state: dict[str, Any]) -> Any:
        """Undo `get_config`."""
        make: Any = cls
        return make(nncf_spec(state["qspec"]), state["weight"], state["read_elsewhere"])


class NativeSymmetricWeight(_NamedMixin, SymmetricQuantizer):
    """NNCF's symmetric quantizer on a named parameter.

    Args:
        qspec: NNCF's description.
        weight: Name of the parameter.
        read_elsewhere: Whether the parameter is also read without a quantizer.
    """

    def __init__(self, qspec: PTQuantizerSpec, weight: str, read_elsewhere: bool = False) -> None:
        SymmetricQuantizer.__init__(self, qspec)
        self.weight, self.read_elsewhere = weight, read_elsewhere


class NativeAsymmetricWeight(_NamedMixin, AsymmetricQuantizer):
    """NNCF's asymmetric quantizer on a named parameter. Args: as `NativeSymmetricWeight`."""

    def __init__(self, qspec: PTQuantizerSpec, weight: str, read_elsewhere: bool = False) -> None:
        AsymmetricQuantizer.__init__(self, qspec)
        self.weight, self.read_elsewhere = weight, read_elsewhere


NativeWeight = NativeSymmetricWeight | NativeAsymmetricWeight


def named(native: BaseQuantizer, weight: str, read_elsewhere: bool) -> NativeWeight:
    """The same quantizer, which knows its parameter."""
    symmetric = isinstance(native, SymmetricQuantizer)
    kind = NativeSymmetricWeight if symmetric else NativeAsymmetricWeight
    quantizer: NativeWeight = kind(native._qspec, weight, read_elsewhere)
    quantizer.to(next(native.parameters()).device)
    quantizer.load_state_dict(native.state_dict())
    return quantizer


def native_weight(model: nn.Module, hook: str, quantizer: nn.Module) -> str | None:
    """The parameter below a quantizer of NNCF's own; None for an activation's.

    Of a model that was quantized without this package only the operator's name is known.

    Raises:
        ValueError: several modules could be meant by that name.
    """
    if isinstance(quantizer, NativeWeight):
        return quantizer.weight
    if not isinstance(quantizer, BaseQuantizer) or isinstance(quantizer, ActivationQuantizer):
        return None
    kind, operator, port = decode_hook_name(hook)
    if kind != "pre_hooks" or port == 0:
        return None
    place = operator.split("/")[:-2]
    names = [
        f"{path}.weight" if path else "weight"
        for path, module in model.named_modules()
        if isinstance(module._parameters.get("weight"), Tensor) and called_as(model, path) == place
    ]
    if len(names) > 1:
        raise ValueError(
            f"NNCF's quantizer at {operator!r} may be that of {', '.join(map(repr, names))}: NNCF "
            "leaves a ModuleList out of its names. Pass example_input to zaq_nncf.audit; for "
            "zaq_nncf.strip quantize with zaq_nncf.quantize, or with nncf.quantize after "
            "zaq_nncf.register."
        )
    return names[0] if names else None


def called_as(model: nn.Module, path: str) -> list[str]:
    """The parts of a module's path that NNCF's names keep: those of children of what was called."""
    parts: list[str] = []
    module, inside = model, False
    for part in path.split(".") if path else ():
        module = module.get_submodule(part)
        if isinstance(module, nn.ModuleList | nn.ModuleDict):
            inside = True
            continue
        if not inside:
            parts.append(part)
        inside = False
    return parts


def tensor_of(model: nn.Module, name: str) -> Tensor:
    """A weight by its name: a parameter, or a buffer that a function multiplies by."""
    tensor: Tensor = attribute_at(model, name)
    return tensor
