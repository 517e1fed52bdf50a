"""Weight quantizers that stay NNCF's own, and which parameter each of them sits on.

NNCF names an operator after the modules that were *called* on the way to it. What a ModuleList
holds is called without the list, so that its operators lack a part of their path, and the same
name can stand for several modules: a quantizer is told its parameter when it is placed.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from zaq_nncf._compat import (
    AsymmetricQuantizer,
    BaseQuantizer,
    PTQuantizerSpec,
    SymmetricQuantizer,
    decode_hook_name,
)
from zaq_nncf.activation_quantizers import ActivationQuantizer
from zaq_nncf.quantizing import nncf_spec, plain_spec
from zaq_plugin.graph import attribute_at


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
