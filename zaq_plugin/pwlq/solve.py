"""Clip and breakpoints of every channel, by the spec's policy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zaq_plugin.pwlq.checks import check_finite, check_spec, check_tensor, normalize_axis
from zaq_plugin.pwlq.kernels import BLOCK
from zaq_plugin.pwlq.layout import channels_of, to_rows
from zaq_plugin.pwlq.search import search_edges
from zaq_plugin.pwlq.spec import PWLQSpec, QuantSpec
from zaq_plugin.pwlq.theory import breakpoints_for


def solve_edges(w: Tensor, spec: QuantSpec, axis: int | None = 0) -> Tensor:
    """Choose clip and breakpoints of every channel (PWLQ sections 3.2 and 3.3).

    Args:
        w: values to represent, any shape; statistics are taken in float32.
        spec: the format; its ``policy`` (or ``clip``) decides how.
        axis: channel axis, or None for one grid per tensor.

    Returns:
        (sides, channels, n + 1) float32 magnitudes p_1 <= ... <= p_n <= m in w's units; sides is
        (positive, negative) for asymmetric specs and has length 1 otherwise. A uniform spec has n
        = 0.

    Raises:
        TypeError: if w is no floating-point tensor or spec no spec.
        ValueError: if w is empty or contains NaN or infinity, the axis does not exist, or the
            policy is ``given``.
    """
    spec = check_spec(spec)
    check_tensor(w)
    axis = normalize_axis(w, axis)
    check_finite(w)
    return torch.ops.zaq.pwlq_solve(w.detach(), spec.to_json(), axis)


def solve_rows(rows: Tensor, spec: QuantSpec) -> Tensor:
    """`solve_edges` for checked rows (C, K)."""
    if isinstance(spec, PWLQSpec):
        if spec.policy == "given":
            raise ValueError(
                "policy='given' takes clip and breakpoints from the caller: pass edges=, of shape "
                "(sides, channels, breakpoints + 1)."
            )
        if spec.policy == "joint":
            return search_edges(rows, spec, joint=True)
        if spec.policy == "search":
            return search_edges(rows, spec, joint=False)
        return _density_edges(rows, spec)
    if spec.clip == "mse":
        return search_edges(rows, spec, joint=True)
    return side_maxima(rows, spec).unsqueeze(-1)


def side_maxima(rows: Tensor, spec: QuantSpec) -> Tensor:
    """(sides, C): the largest magnitude on each side."""
    # Two reductions: per row, torch's fused aminmax is many times slower than both.
    low, high = rows.amin(1).float(), rows.amax(1).float()
    if spec.symmetry == "asymmetric":
        return torch.stack([high.clamp(min=0), (-low).clamp(min=0)])
    if spec.symmetry == "one-sided":
        return high.clamp(min=0).unsqueeze(0)
    return torch.maximum(high, -low).unsqueeze(0)


def _density_edges(rows: Tensor, spec: PWLQSpec) -> Tensor:
    """Breakpoints of an assumed density at m = max|w|; one standard deviation for both sides."""
    clip = side_maxima(rows, spec)
    sigma = standard_deviation(rows)
    density = "gaussian" if spec.policy.startswith("gaussian") else "laplacian"
    relative = (clip / sigma).reshape(-1)
    found = breakpoints_for(relative, spec.breakpoints, density, spec.policy.endswith("exact"))  # type: ignore[arg-type]
    points = found.view(*clip.shape, spec.breakpoints) * sigma.view(1, -1, 1)
    even = torch.arange(1, spec.breakpoints + 1, device=rows.device) / (spec.breakpoints + 1)
    # A constant or empty side has no spread to work with: cut it evenly.
    usable = torch.isfinite(points) & (points > 0)
    points = torch.where(usable, points, clip.unsqueeze(-1) * even)
    points = torch.minimum(points, clip.unsqueeze(-1))
    return torch.cat([points, clip.unsqueeze(-1)], -1)


def standard_deviation(rows: Tensor) -> Tensor:
    """(C,) population standard deviation, in float32; centered first, so nothing cancels."""
    parts = []
    step = max(1, BLOCK // rows.shape[1])
    for part in rows.split(step):
        values = part.float()
        centered = values - values.mean(1, keepdim=True)
        parts.append(torch.linalg.vector_norm(centered, dim=1))
    return torch.cat(parts) / math.sqrt(rows.shape[1])


def edges_for(w: Tensor, spec: QuantSpec, axis: int | None) -> Tensor:
    """`solve_edges` without checks; axis is normalised."""
    # Contiguous, so that sums run in the same order for any memory layout.
    edges = solve_rows(to_rows(w, axis).contiguous(), spec)
    expected = (spec.sides, channels_of(w, axis), spec.breakpoints + 1)
    return edges.reshape(expected).contiguous()
