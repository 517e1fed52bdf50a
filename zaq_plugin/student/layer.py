"""`QuantLayer`: one quantized layer of a student, whatever host prepared it.

A layer multiplies by a weight that a fake-quantizer puts on its levels, and adds a bias. Everything
that algorithms ask of it is here; a host says where weight, bias and fake-quantizer are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from zaq_plugin.layers import has_own_forward
from zaq_plugin.pwlq import PWLQTensor, fake_quantize, quantize
from zaq_plugin.pwlq.cells import levels_of
from zaq_plugin.pwlq.functional import complete_edges
from zaq_plugin.pwlq.kernels import from_rows, to_rows
from zaq_plugin.student.fake_quantizers import Slot


class QuantLayer(ABC):
    """A convolution or linear layer whose weight is fake-quantized.

    Attributes:
        name: Dotted name of the layer.
        plain: The layer as a module of torch: its kind, its geometry, and its linear map (see
            `affine`); the tensors that it holds are not looked at. None where the weight belongs to
            no convolution and no linear layer.
        slot: Where the weight's fake-quantizer sits.
    """

    def __init__(self, name: str, plain: nn.Module | None, slot: Slot) -> None:
        self.name, self.plain, self.slot = name, plain, slot

    @property
    def quantizer(self) -> Any:
        """The weight's fake-quantizer."""
        return self.slot.module

    @property
    def axis(self) -> int | None:
        """The channels' axis of the weight; None for one grid per tensor."""
        axis = self.quantizer.ch_axis
        return None if axis is None else int(axis)

    # ---- the weight ------------------------------------------------------------------------------

    @property
    @abstractmethod
    def parameter(self) -> nn.Parameter:
        """The float weight, as it is trained; a tensor of the student's own."""

    @property
    def weight(self) -> Tensor:
        """What the fake-quantizer sees: the parameter, or the parameter times a factor a channel
        where the host folds BatchNorm on the fly. Detached."""
        return self.parameter.detach()

    def notice(self, seen: Tensor) -> None:
        """Be told what the fake-quantizer was called with, where only a run shows that."""
        del seen

    @torch.no_grad()
    def write(self, values: Tensor) -> None:
        """Change the parameter so that the fake-quantizer sees these values."""
        self.parameter.copy_(values.to(self.parameter))

    def rows(self, values: Tensor) -> Tensor:
        """A tensor of the weight's shape as (channels, elements)."""
        return to_rows(values, self.axis)

    def unrows(self, rows: Tensor) -> Tensor:
        """Undo `rows`."""
        return from_rows(rows, self.parameter, self.axis)

    # ---- the grid --------------------------------------------------------------------------------

    @property
    def edges(self) -> Tensor:
        """(sides, channels, n + 1) breakpoints and clips in use, detached; solved if need be.

        One column more is the reach of the int8 grid, see `zaq_plugin.pwlq.overflow`.
        """
        if self.quantizer.activation_post_process.edges.numel() == 0:
            self.quantizer(self.weight)  # the first call solves for them
        edges: Tensor = self.quantizer.edges.detach()
        return edges

    @torch.no_grad()
    def set_edges(self, edges: Tensor) -> None:
        """Give the fake-quantizer other breakpoints and clips, (sides, channels, n + 1).

        Without a reach, in one column more, they get one on which the weight does not overflow.
        """
        spec, observer = self.quantizer.spec, self.quantizer.activation_post_process
        observer.keep(complete_edges(self.weight, edges, spec, self.axis))

    def levels(self) -> Tensor:
        """(channels, L) ascending levels in weight units."""
        return levels_of(self.edges, self.quantizer.spec)

    def quantized(self, weight: Tensor | None = None) -> Tensor:
        """The weight, or another one of its shape, on the levels; detached."""
        if weight is not None:
            return fake_quantize(weight, self.quantizer.spec, self.axis, edges=self.edges)
        quantizer = self.quantizer
        enabled = bool(quantizer.fake_quant_enabled[0])
        try:
            quantizer.enable_fake_quant()
            values: Tensor = quantizer(self.weight).detach()
        finally:
            quantizer.enable_fake_quant(enabled)
        return values

    def tensor(self) -> PWLQTensor:
        """Codes and levels of the weight; ``dequantize()`` equals `quantized` bit for bit."""
        return quantize(self.weight, self.quantizer.spec, self.axis, edges=self.edges)

    # ---- the product -----------------------------------------------------------------------------

    @torch.no_grad()
    def affine(self, x: Tensor, weight: Tensor) -> Tensor:
        """What the layer makes of an input with another weight and no bias; linear in both.

        Args:
            x: (n, channels, *size), or (*, features) for a linear layer; of the weight's type.
            weight: Of the layer's shape, in any floating-point type.

        Raises:
            ValueError: If the weight belongs to no layer that runs by itself.
        """
        if self.plain is None:
            raise ValueError(f"{self.name!r} is a weight without a layer of its own")
        bias: Any = self.plain.bias
        if bias is not None:  # a forward of its own may count on there being one
            own = has_own_forward(own_class(self.plain))
            bias = torch.zeros_like(bias, dtype=weight.dtype, device=weight.device) if own else None
        bare = bare_layer(self.plain, weight, bias)
        output: Tensor = bare(x)
        return output

    # ---- the bias --------------------------------------------------------------------------------

    @property
    def memory(self) -> Any:
        """The module that remembers corrections, as ``bias_shift``: the weight's fake-quantizer."""
        return self.quantizer

    @property
    @abstractmethod
    def bias(self) -> Tensor | None:
        """What is added to the product; a tensor of the student's own. None: it cannot have one."""

    @torch.no_grad()
    def add_to_bias(self, shift: Tensor) -> None:
        """Add to the bias, and remember it: see `restore_bias`.

        Args:
            shift: (output channels,).

        Raises:
            ValueError: If the shift is not finite, or the layer cannot have a bias.
        """
        bias = self.bias
        if bias is None:
            raise ValueError(f"layer {self.name!r} has no bias to correct")
        if not bool(shift.isfinite().all()):
            raise ValueError(
                f"layer {self.name!r}: the mean output error is not finite; check the batches for "
                "NaN or infinity"
            )
        bias.add_(shift.to(bias))
        taken = self.memory.bias_shift
        before = taken.to(shift) if taken.numel() else torch.zeros_like(shift)
        self.memory.bias_shift = (before - shift).to(bias.device, torch.float32)

    @torch.no_grad()
    def restore_bias(self) -> None:
        """Take back what `add_to_bias` has added."""
        taken, bias = self.memory.bias_shift, self.bias
        if bias is not None and taken.numel():
            bias.add_(taken.to(bias))
            self.memory.bias_shift = torch.zeros_like(taken)


def own_class(layer: nn.Module) -> type[nn.Module]:
    """A layer's class; one with a parametrization has a class of torch's making before it."""
    return type(layer).__mro__[1] if parametrize.is_parametrized(layer) else type(layer)


def bare_layer(
    layer: nn.Module,
    weight: Tensor,
    bias: Tensor | None = None,
    kind: type[nn.Module] | None = None,
) -> nn.Module:
    """A layer of the same geometry, without hooks, parametrizations and fake-quantizers.

    Args:
        layer: It is not changed.
        weight, bias: The tensors of the new one, which are not copied.
        kind: The class of the new one; the layer's own if None.
    """
    kind = kind or own_class(layer)
    bare = kind.__new__(kind)
    bare.__dict__ = {
        key: OrderedDict() if key.endswith("_hooks") and isinstance(value, OrderedDict) else value
        for key, value in layer.__dict__.items()
        if key not in ("forward", "_call_impl")  # a host's, bound to the layer itself
    }
    parameters = {k: v for k, v in layer._parameters.items() if k not in ("weight", "bias")}
    bare._parameters = {
        "weight": nn.Parameter(weight, requires_grad=False),
        "bias": None if bias is None else nn.Parameter(bias, requires_grad=False),
        **parameters,
    }
    bare._buffers = dict(layer._buffers)
    ours = ("parametrizations", "input_fake_quant", "weight_fake_quant")
    bare._modules = {k: v for k, v in layer._modules.items() if k not in ours}
    return bare
