"""Edges by closed forms: the range of every channel, and breakpoints of an assumed density."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zaq_plugin.pwlq.base import Format
from zaq_plugin.pwlq.kernels import BLOCK
from zaq_plugin.pwlq.theory import breakpoints_for


def side_maxima(rows: Tensor, spec: Format) -> Tensor:
    """(sides, C): the largest magnitude on each side."""
    # Two reductions: per row, torch's fused aminmax is many times slower than both.
    low, high = rows.amin(1).float(), rows.amax(1).float()
    if spec.symmetry == "asymmetric":
        return torch.stack([high.clamp(min=0), (-low).clamp(min=0)])
    if spec.symmetry == "one-sided":
        return high.clamp(min=0).unsqueeze(0)
    return torch.maximum(high, -low).unsqueeze(0)


def density_edges(rows: Tensor, spec: Format, policy: str) -> Tensor:
    """Breakpoints of an assumed density at m = max|w|; one standard deviation for both sides."""
    clip = side_maxima(rows, spec)
    sigma = standard_deviation(rows)
    density = "gaussian" if policy.startswith("gaussian") else "laplacian"
    relative = (clip / sigma).reshape(-1)
    relative_points = breakpoints_for(relative, spec.breakpoints, density, policy.endswith("exact"))  # type: ignore[arg-type]
    points = relative_points.view(*clip.shape, spec.breakpoints) * sigma.view(1, -1, 1)
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
