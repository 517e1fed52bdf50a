"""`quantize` and its differentiable twin `fake_quantize`."""

from __future__ import annotations

import torch
from torch import Tensor

from zaq_plugin.pwlq.base import Format
from zaq_plugin.pwlq.checks import (
    check_edges,
    check_finite,
    check_spec,
    check_tensor,
    normalize_axis,
)
from zaq_plugin.pwlq.layout import channels_of
from zaq_plugin.pwlq.levels import with_tops
from zaq_plugin.pwlq.tensor import PWLQTensor


def quantize(
    w: Tensor, spec: Format, axis: int | None = 0, *, edges: Tensor | None = None
) -> PWLQTensor:
    """Quantize a tensor to codes and a codebook per channel (PWLQ section 3.1).

    Args:
        w: float16, bfloat16, float32 or float64, any shape and memory format; computed in float32.
        spec: `PWLQSpec` or `UniformSpec`.
        axis: channel axis (0 for convolution and linear weights), or None for one grid per tensor.
        edges: clip and breakpoints to use, (sides, channels, n + 1); by default `solve_edges`
            chooses. One column more, as observers keep it, is the reach of the int8 grid, which is
            solved for this weight otherwise; see `zaq_plugin.pwlq.overflow`.

    Raises:
        TypeError: if w is no floating-point tensor, or spec no spec.
        ValueError: if w is empty or holds NaN or infinity, axis does not exist, or edges do not
            fit.

    Example:
        >>> w = torch.tensor([[-1.0, -0.1, 0.0, 0.1, 1.0]])
        >>> q = quantize(w, PWLQSpec(bits=4))
        >>> q.mac_bits, q.stored_bits
        (4, 5)
    """
    spec, axis, edges = _prepare(w, spec, axis, edges)
    codes, codebook, scale = torch.ops.zaq.pwlq_quantize(w.detach(), edges, spec.to_json(), axis)
    return PWLQTensor.measured(codes, codebook, scale, axis, spec, w.detach(), edges.detach())


def fake_quantize(
    w: Tensor, spec: Format, axis: int | None = 0, *, edges: Tensor | None = None
) -> Tensor:
    """Quantize and dequantize, differentiably; equal to ``quantize(...).dequantize()`` bit for bit.

    The gradient passes straight through inside the clip and is zero outside. Given edges receive
    the gradient of the straight-through surrogate, so that clip and breakpoints can be learned
    (``p = m * sigmoid(theta)``). Edges that the policy solves are constants.

    Args and errors: as `quantize`; under ``torch.compile`` and ``torch.export`` the values
    themselves are not checked. The result has w's shape, dtype and memory format.
    """
    spec, axis, edges = _prepare(w, spec, axis, edges)
    out: Tensor = torch.ops.zaq.pwlq_fake_quantize(w, edges, spec.to_json(), axis)
    return out


def complete_edges(w: Tensor, edges: Tensor, spec: Format, axis: int | None) -> Tensor:
    """Edges with the reach of the int8 grid on which a weight's products do not overflow.

    Args:
        w: the weight.
        spec, axis: as for `quantize`.
        edges: (sides, channels, n + 1); those that have a reach, and those of formats that need
            none, come back as they are.

    Returns:
        (sides, channels, n + 2); see `zaq_plugin.pwlq.overflow`.
    """
    if not spec.guarded or edges.shape[-1] > spec.edge_count:
        return edges
    axis = normalize_axis(w, axis)
    tops = torch.ops.zaq.pwlq_tops(w.detach(), edges.detach(), spec.to_json(), axis)
    return with_tops(edges, tops)


def _prepare(
    w: Tensor, spec: Format, axis: int | None, edges: Tensor | None
) -> tuple[Format, int | None, Tensor]:
    spec = check_spec(spec)
    check_tensor(w)
    axis = normalize_axis(w, axis)
    if not torch.compiler.is_compiling():
        check_finite(w)
        if edges is not None:
            check_edges(edges, spec, channels_of(w, axis))
    if edges is None:
        edges = torch.ops.zaq.pwlq_solve(w.detach(), spec.to_json(), axis)
    return spec, axis, complete_edges(w, edges, spec, axis)
