"""Students whose layers are modules: simulated ones, and the base of FX's and NNCF's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from zaq_plugin.fake_quantize import PWLQPerChannelFakeQuantize
from zaq_plugin.layers import LAYERS, hooked
from zaq_plugin.student.batches import Call
from zaq_plugin.student.fake_quantizers import Slot, carried_quantizer
from zaq_plugin.student.layer import QuantLayer, bare_layer
from zaq_plugin.student.view import Before, Student, register_student


class ModuleLayer(QuantLayer):
    """A layer that is a module with a bias of its own.

    Attributes:
        module: The module that is called with the layer's input.
    """

    def __init__(self, name: str, module: nn.Module, slot: Slot) -> None:
        super().__init__(name, module, slot)
        self.module = module

    @property
    def bias(self) -> Tensor | None:
        """The module's own."""
        bias = self.module.bias
        return bias if isinstance(bias, Tensor) else None


class ParametrizedLayer(ModuleLayer):
    """A layer whose weight has a fake-quantizer as its parametrization."""

    @property
    def parameter(self) -> nn.Parameter:
        """The float weight behind the parametrization."""
        original = self.module.parametrizations.weight.original  # type: ignore[union-attr]
        assert isinstance(original, nn.Parameter)
        return original


def parametrized_layer(name: str, module: nn.Module) -> ParametrizedLayer | None:
    """The view of a module with a fake-quantizer on its weight, or None."""
    if not parametrize.is_parametrized(module, "weight"):
        return None
    chain: Any = module.parametrizations.weight  # type: ignore[union-attr]
    if not isinstance(chain[0], PWLQPerChannelFakeQuantize):
        return None
    prefix = f"{name}." if name else ""
    return ParametrizedLayer(
        name, module, Slot(f"{prefix}parametrizations.weight.0", chain, "0", chain[0])
    )


class CarriedLayer(ModuleLayer):
    """A layer that carries its weight's fake-quantizer as ``weight_fake_quant``, as hosts' modules
    for training do, and calls it with its weight, or its weight times a factor per channel.

    Attributes:
        factor: Of the weight's shape, or broadcast to it; None for 1. A run shows it, see `notice`.
    """

    def __init__(self, name: str, module: nn.Module, slot: Slot) -> None:
        super().__init__(name, module, slot)
        kind = next(c for c in type(module).__mro__ if c in LAYERS)
        self.plain = bare_layer(module, self.parameter, kind=kind)
        self.factor: Tensor | None = None

    @property
    def memory(self) -> Any:
        """Its own where it shares its fake-quantizer with another layer."""
        return getattr(self.module, "bias_memory", self.quantizer)

    @property
    def parameter(self) -> nn.Parameter:
        """The module's own weight."""
        weight = self.module.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def weight(self) -> Tensor:
        """The weight times the factor."""
        weight = self.parameter.detach()
        return weight if self.factor is None else weight * self.factor

    def notice(self, seen: Tensor) -> None:
        """Find the factor of each channel between the weight and what was seen."""
        rows, raw = self.rows(seen.detach().double()), self.rows(self.parameter.detach().double())
        if torch.equal(rows, raw):
            return
        power = raw.square().sum(1, keepdim=True)
        factor = (rows * raw).sum(1, keepdim=True) / power.clamp(min=1e-300)
        self.factor = self.unrows(factor.expand_as(raw)).to(self.parameter)

    @torch.no_grad()
    def write(self, values: Tensor) -> None:
        """See `QuantLayer.write`; where the factor is 0 there is nothing to write."""
        if self.factor is None:
            super().write(values)
            return
        factor = self.factor.expand_as(values)
        written = values.to(factor) / factor
        self.parameter.copy_(torch.where(factor == 0, self.parameter, written))


def carried_layer(name: str, module: nn.Module) -> CarriedLayer | None:
    """The view of a module that carries its weight's fake-quantizer, or None."""
    quantizer = carried_quantizer(module)
    if not isinstance(quantizer, PWLQPerChannelFakeQuantize) or not isinstance(module, LAYERS):
        return None
    prefix = f"{name}." if name else ""
    slot = Slot(f"{prefix}weight_fake_quant", module, "weight_fake_quant", quantizer)
    return CarriedLayer(name, module, slot)


class ModuleStudent(Student):
    """A student that is run by calling it; hooks see what reaches its layers."""

    def layers(self) -> dict[str, QuantLayer]:
        """Layers that carry their fake-quantizer, in the order of the module tree."""
        layers: dict[str, QuantLayer] = {}
        for name, module in self.model.named_modules():
            layer = module_layer(name, module)
            if layer is not None:
                layers[name] = layer
        return layers

    def called_module(self, layer: QuantLayer) -> nn.Module | None:
        """The module whose call is the layer's."""
        return layer.module if isinstance(layer, ModuleLayer) else None

    def run(self, call: Call, before: Before | None = None) -> Any:
        """Call the model, with hooks in front of its layers."""
        handles = []
        for layer in self.layers().values() if before is not None else ():
            module = self.called_module(layer)
            if module is not None:

                def hook(
                    _: nn.Module,
                    args: tuple[Any, ...],
                    kwargs: dict[str, Any],
                    layer: QuantLayer = layer,
                ) -> None:
                    assert before is not None
                    before(layer, args[0] if args else kwargs["input"])

                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        with hooked(handles):
            return self.model(*call[0], **call[1])


def module_layer(name: str, module: nn.Module) -> ModuleLayer | None:
    """The view of a module with a fake-quantized weight, or None."""
    return parametrized_layer(name, module) or carried_layer(name, module)


def has_module_layers(model: nn.Module) -> bool:
    """Whether a model holds layers that carry the fake-quantizers of their weights."""
    return any(module_layer(name, module) is not None for name, module in model.named_modules())


register_student(has_module_layers, ModuleStudent)
