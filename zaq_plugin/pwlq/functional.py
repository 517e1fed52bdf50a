"""`quantize`, its differentiable twin `fake_quantize`, and weight-only bias correction.

Matching mean and spread of every channel is of ACIQ (Banner et al., 2019); PWLQ, section 4.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from zaq_plugin.pwlq import eager
from zaq_plugin.pwlq.base import Format
from zaq_plugin.pwlq.checks import (
    check_edges,
    check_finite,
    check_spec,
    check_tensor,
    normalize_axis,
)
from zaq_plugin.pwlq.kernels import channels_of, to_rows
from zaq_plugin.pwlq.levels import with_tops
from zaq_plugin.pwlq.rounding import is_known, rounder_of
from zaq_plugin.pwlq.statistics import sqnr_db
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
    if not eager.is_eager(w, edges):
        spec, axis, edges = _prepare(w, spec, axis, edges)
        out: Tensor = torch.ops.zaq.pwlq_fake_quantize(w, edges, spec.to_json(), axis)
        return out
    axis = _check(w, spec, axis)
    ends = eager.extremes(w, axis)
    edges = _edges(w, spec, axis, edges)
    return eager.fake_quantize(w, edges, rounder_of(edges, spec), axis, ends)


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
    axis = _check(w, spec, axis)
    if not torch.compiler.is_compiling():
        check_finite(w)
    return spec, axis, _edges(w, spec, axis, edges)


def _check(w: Tensor, spec: Format, axis: int | None) -> int | None:
    """The axis, normalised; what values do not decide is checked."""
    check_spec(spec)
    check_tensor(w)
    return normalize_axis(w, axis)


def _edges(w: Tensor, spec: Format, axis: int | None, edges: Tensor | None) -> Tensor:
    """Complete edges: given ones, checked, or those that the policy solves for."""
    if edges is None:
        edges = torch.ops.zaq.pwlq_solve(w.detach(), spec.to_json(), axis)
    elif not torch.compiler.is_compiling() and not is_known(edges, spec):
        check_edges(edges, spec, channels_of(w, axis))
    return complete_edges(w, edges, spec, axis)


def correct_spread(q: PWLQTensor, w: Tensor) -> tuple[PWLQTensor, Tensor]:
    """Match the standard deviation on the grid, and say what is left of the mean.

    The spread goes into the scale, ``scale * std(W) / std(Q)``, which stays on the int8 grid. The
    mean shift cannot: it is returned so that it can be folded into a bias, ``b += shift * E[sum of
    the inputs]``.

    Args:
        q: the quantized tensor.
        w: the original values, q's shape.

    Returns:
        The rescaled tensor, and the shift (channels,) with ``mean(W) = mean(corrected) + shift``.
    """
    original = to_rows(w.detach().double(), q.axis)
    quantized = to_rows(q.dequantize(torch.float32).double(), q.axis)
    spread, was = original.std(1, correction=0), quantized.std(1, correction=0)
    usable = (was > 0) & (spread > 0)
    factor = torch.where(usable, spread / was, torch.ones_like(was)).float()
    floating = q.codebook.is_floating_point()
    codebook = q.codebook * factor.unsqueeze(1) if floating else q.codebook
    scale = q.scale if floating else q.scale * factor
    corrected = replace(q, codebook=codebook, scale=scale, edges=None)
    values = corrected.dequantize(torch.float32)
    shift = original.mean(1) - to_rows(values.double(), q.axis).mean(1)
    return replace(corrected, sqnr_db=sqnr_db(w, values)), shift.float()


def correct_mean_std(q: PWLQTensor, w: Tensor) -> PWLQTensor:
    """Match mean and standard deviation of every channel exactly, as in the paper's experiments.

    On the int8 grid the levels leave the grid by the mean shift, so the result is on the float grid
    (float32 codebook, scale 1); use `correct_spread` to stay on it.

    Args:
        q: the quantized tensor.
        w: the original values, q's shape.
    """
    corrected, shift = correct_spread(q, w)
    levels = corrected.codebook.float() * corrected.scale.unsqueeze(1) + shift.unsqueeze(1)
    moved = replace(corrected, codebook=levels, scale=torch.ones_like(corrected.scale))
    return replace(moved, sqnr_db=sqnr_db(w, moved.dequantize(torch.float32)))
