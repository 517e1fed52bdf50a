"""Transposed convolutions that carry their weight's fake-quantizer: the host has none."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from zaq_plugin.student.layer import bare_layer


class _With:
    """A module in all but its weight, as its own ``forward`` sees it."""

    def __init__(self, module: nn.Module, weight: Tensor) -> None:
        self.module, self.weight = module, weight

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


class _Carrier:
    """What the host asks of its modules for training."""

    weight: Any
    bias: Any
    weight_fake_quant: Any

    def forward(self: Any, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """The layer with its weight on the levels."""
        float_class: Any = type(self).__mro__[2]
        seen = _With(self, self.weight_fake_quant(self.weight))
        out: Tensor = float_class.forward(seen, x, output_size)
        return out

    def to_float(self: Any) -> nn.Module:
        """The plain layer, as conversion wants it."""
        bias = None if self.bias is None else self.bias.detach()
        layer = bare_layer(self, self.weight.detach(), bias, type(self).__mro__[2])
        layer.train(self.training)
        return layer

    @classmethod
    def from_float(cls: Any, mod: Any, use_precomputed_fake_quant: bool = False) -> nn.Module:
        """The layer for training in the place of a plain one, whose tensors it takes."""
        layer: Any = bare_layer(mod, mod.weight, mod.bias, cls)
        layer._parameters.update(mod._parameters)
        layer.qconfig, layer.weight_fake_quant = mod.qconfig, mod.qconfig.weight()
        layer.weight_fake_quant.to(mod.weight.device)
        return layer


class ConvTranspose1d(_Carrier, nn.ConvTranspose1d):
    """See `_Carrier`."""


class ConvTranspose2d(_Carrier, nn.ConvTranspose2d):
    """See `_Carrier`."""


class ConvTranspose3d(_Carrier, nn.ConvTranspose3d):
    """See `_Carrier`."""


TRAINED: dict[type[nn.Module], type[nn.Module]] = {
    nn.ConvTranspose1d: ConvTranspose1d,
    nn.ConvTranspose2d: ConvTranspose2d,
    nn.ConvTranspose3d: ConvTranspose3d,
}
"""Plain class to the one for training."""
