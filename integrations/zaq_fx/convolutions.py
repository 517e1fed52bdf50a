"""Convolutions as the host takes them: padding in numbers, norms folded, transposed ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from zaq_fx.kept import KeptFloat
from zaq_plugin.ptq.fold_arithmetic import fold_module, norm_statistics
from zaq_plugin.student.layer import bare_layer

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_BY_BATCHES = "torch.ao does not train a transposed convolution together with its BatchNorm"


def pad_in_numbers(traced: fx.GraphModule) -> int:
    """Replace ``padding="same"`` and ``"valid"`` and padding modes by plain numbers, in place.

    Zeros on both sides alike become the convolution's own padding; whatever else is padded by
    an operator in front of it.

    Returns:
        How many calls were changed.
    """
    modules = dict(traced.named_modules(remove_duplicate=False))
    count = 0
    ends: dict[str, tuple[list[int], str]] = {}
    for node in list(traced.graph.nodes):
        if node.op != "call_module":
            continue
        name = str(node.target)
        conv: Any = modules[name]
        if type(conv) not in _CONVOLUTIONS:
            continue
        if name not in ends:
            named = isinstance(conv.padding, str)
            if not named and (conv.padding_mode == "zeros" or not any(conv.padding)):
                continue
            ends[name] = _ends(conv), conv.padding_mode
            conv.padding, conv.padding_mode = _own_padding(conv), "zeros"
        count += 1
        pads, mode = ends[name]
        if any(conv.padding) or not any(pads):
            continue
        options: dict[str, Any] = {} if mode == "zeros" else {"mode": mode}
        with traced.graph.inserting_before(node):
            padded = traced.graph.call_function(functional.pad, (node.args[0], pads), options)
        node.args = (padded, *node.args[1:])
    return count


def _ends(conv: Any) -> list[int]:
    """Padding before and after each axis, the last axis first, as `functional.pad` takes it."""
    if conv.padding == "valid":
        return [0, 0] * len(conv.kernel_size)
    if conv.padding != "same":
        return [p for padding in reversed(conv.padding) for p in (padding, padding)]
    pads = []
    for size, dilation in zip(reversed(conv.kernel_size), reversed(conv.dilation), strict=True):
        total = dilation * (size - 1)
        pads += [total // 2, total - total // 2]
    return pads


def _own_padding(conv: Any) -> tuple[int, ...]:
    """What of the padding the convolution can do itself: zeros, on both sides alike."""
    pads = _ends(conv)
    before, after = pads[::2], pads[1::2]
    alike = before == after and conv.padding_mode == "zeros"
    return tuple(reversed(before)) if alike else (0,) * len(before)


def fold_transposed(traced: fx.GraphModule) -> list[str]:
    """Take BatchNorms behind transposed convolutions apart from the host's hands, in place.

    In evaluation mode the convolution takes the BatchNorm into its weight (the host's fold knows
    neither groups nor a ReLU behind), in training the BatchNorm stays a float layer.

    Returns:
        Names of the BatchNorms.
    """
    modules = dict(traced.named_modules(remove_duplicate=False))
    names = []
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or type(modules[str(node.target)]) not in _BATCH_NORMS:
            continue
        source = node.args[0]
        if not isinstance(source, fx.Node) or source.op != "call_module":
            continue
        conv, norm = modules[str(source.target)], modules[str(node.target)]
        if type(conv) not in _TRANSPOSED or len(source.users) > 1:
            continue
        name = str(node.target)
        names.append(name)
        if norm.training:
            traced.set_submodule(name, KeptFloat(norm, _BY_BATCHES))
            continue
        stats = norm_statistics(norm)
        if isinstance(stats, str):
            raise ValueError(f"the BatchNorm '{name}' cannot be folded: {stats}.")
        with torch.no_grad():
            fold_module(conv, stats)
        traced.set_submodule(name, nn.Identity())
    return names


# ---- Transposed convolutions that carry their weight's fake-quantizer ----------------------------


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
