"""What the quantizers of weights and of activations share: how NNCF sees and describes them.

Each is one of NNCF's own classes, so that NNCF places it, saves it, strips it and finds it in the
graph; the arithmetic is in its child ``grid``, one of `zaq_plugin`'s fake-quantizers, so that what
zero-shot fine-tuning knows about those holds there, too. NNCF recognises a quantizer in the graph
by the *name* of the function that did the work, which is why two functions here carry its names.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from zaq_nncf._compat import (
    BaseQuantizer,
    PTQuantizerSpec,
    QuantizationScheme,
    handle_torch_function,
    has_torch_function_unary,
)


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


def plain_spec(qspec: PTQuantizerSpec) -> dict[str, Any]:
    """NNCF's description of a quantizer as JSON values: its enumeration as text."""
    state = dict(qspec.get_state())
    state["mode"] = str(getattr(state["mode"], "value", state["mode"]))
    state["scale_shape"] = list(state["scale_shape"])
    return state


def nncf_spec(state: dict[str, Any]) -> PTQuantizerSpec:
    """Undo `plain_spec`."""
    mode, shape = QuantizationScheme(state["mode"]), tuple(state["scale_shape"])
    return PTQuantizerSpec.from_state({**state, "mode": mode, "scale_shape": shape})


def freeze_own_ranges(quantizer: BaseQuantizer) -> None:
    """NNCF's own range parameters are not in use: they neither train nor follow anything."""
    for parameter in quantizer.parameters(recurse=False):
        parameter.requires_grad_(False)
