"""The paper's error analysis: expected error, closed forms and the exact minimiser.

Everything here is in units of the standard deviation: a density has standard deviation 1 and the
clip m is ``max|w| / sigma``. PWLQ, section 3.2 and supplement; the supplement prints the closed
forms as p*/m, a misprint for p*.

Edges by closed forms are here, too: the range of every channel, and breakpoints of a density.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from zaq_plugin.pwlq.base import Format
from zaq_plugin.pwlq.kernels import BLOCK

Density = Literal["gaussian", "laplacian"]

CLOSED_FORM_RANGE = (3.0, 10.0)
"""The interval of m / sigma on which the closed forms were fitted."""

_BISECTIONS = 40
_NEWTON_STEPS = 60
_TOLERANCE = 1e-10
_SWEEPS = 60


def cdf(x: Tensor, density: Density) -> Tensor:
    """F(x) of the unit-variance density, elementwise."""
    if density == "gaussian":
        return 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    half = 0.5 * torch.exp(-math.sqrt(2) * x.abs())
    return torch.where(x < 0, half, 1 - half)


def pdf(x: Tensor, density: Density) -> Tensor:
    """f(x) of the unit-variance density, elementwise."""
    if density == "gaussian":
        return torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return torch.exp(-math.sqrt(2) * x.abs()) / math.sqrt(2)


def error_constant(bits: int) -> float:
    """C(b) = 1 / (12 (2^b - 1)^2), the squared error of a b-bit uniform grid on a unit range."""
    return 1.0 / (12 * (2**bits - 1) ** 2)


def expected_error(p: Tensor, m: Tensor, bits: int, density: Density) -> Tensor:
    """E = C(b-1) ((m - p)^2 + m (2p - m)(2F(p) - 1)): expected squared error of one breakpoint.

    Args:
        p: breakpoints, in standard deviations, any shape.
        m: clips, broadcastable with p.
        bits: MAC bits b.
        density: ``gaussian`` or ``laplacian``.
    """
    spread = (m - p) ** 2 + m * (2 * p - m) * (2 * cdf(p, density) - 1)
    return error_constant(bits - 1) * spread


def uniform_expected_error(m: Tensor, bits: int) -> Tensor:
    """C(b) (2m)^2: expected squared error of the b-bit uniform grid on [-m, m]."""
    return error_constant(bits) * (2 * m) ** 2


def error_derivative(p: Tensor, m: Tensor, density: Density) -> Tensor:
    """dE/dp up to the factor 2 C(b-1): p - 2m + 2mF(p) + m (2p - m) f(p)."""
    return p - 2 * m + 2 * m * cdf(p, density) + m * (2 * p - m) * pdf(p, density)


def closed_form_breakpoint(m: Tensor, density: Density) -> Tensor:
    """The paper's fits: ln(0.8614 m + 0.6079) (Gaussian), 0.8030 sqrt(m) - 0.3167 (Laplacian).

    Valid for `CLOSED_FORM_RANGE`; p and m in standard deviations.
    """
    if density == "gaussian":
        return torch.log(0.8614 * m + 0.6079)
    return 0.8030 * torch.sqrt(m) - 0.3167


def optimal_breakpoint(m: Tensor, density: Density) -> Tensor:
    """The exact minimiser p* of `expected_error` on (0, m/2], by Newton's method within a bracket.

    The error is convex in p for a symmetric unimodal density, so the root of the derivative is
    unique; where it has none below m/2 (m < 1.35 for the Gaussian), p* = m/2.

    Args:
        m: clips in standard deviations, any shape; computed in float64.
    """
    m64 = m.double()
    low, high = torch.zeros_like(m64), m64 / 2
    p = torch.minimum(closed_form_breakpoint(m64.clamp(min=1), density), 0.45 * m64)
    at_the_end = error_derivative(m64 / 2, m64, density) <= 0
    for _ in range(_NEWTON_STEPS):
        density_at, offset = pdf(p, density), m64 * (2 * p - m64)
        slope = p - 2 * m64 + 2 * m64 * cdf(p, density) + offset * density_at
        decay = p if density == "gaussian" else math.sqrt(2)
        curvature = 1 + (4 * m64 - offset * decay) * density_at
        falling = slope < 0
        low, high = torch.where(falling, p, low), torch.where(falling, high, p)
        newton = p - slope / curvature
        inside = (newton > low) & (newton < high)
        previous, p = p, torch.where(inside, newton, (low + high) / 2)
        if bool((at_the_end | ((p - previous).abs() <= _TOLERANCE * m64)).all()):
            break
    return torch.where(at_the_end, m64 / 2, p).to(m.dtype)


def optimal_breakpoints(m: Tensor, count: int, density: Density) -> Tensor:
    """Minimise sum_l (p_{l+1} - p_l)^2 (F(p_{l+1}) - F(p_l)) over n ordered breakpoints.

    Coordinate descent; each coordinate is solved by bisection between its neighbours. p_0 = 0,
    p_{n+1} = m, and F(m) is taken as 1, as in the paper.

    Args:
        m: clips in standard deviations, shape (C,).
        count: n.

    Returns:
        Breakpoints, shape (C, n), ascending.
    """
    if count == 1:
        return optimal_breakpoint(m, density).unsqueeze(-1)
    m64 = m.double()
    fractions = torch.arange(1, count + 1, dtype=torch.float64, device=m.device) / (count + 1)
    # Begin a little inside the even split: pieces widen outwards.
    points = m64.unsqueeze(-1) * fractions**1.5
    for _ in range(_SWEEPS):
        for index in range(count):
            below = points[:, index - 1] if index > 0 else torch.zeros_like(m64)
            above = points[:, index + 1] if index + 1 < count else m64
            mass_above = cdf(above, density) if index + 1 < count else torch.ones_like(m64)
            mass_below = cdf(below, density)
            low, high = below, above
            for _ in range(_BISECTIONS):
                mid = (low + high) / 2
                mass, slope = cdf(mid, density), pdf(mid, density)
                inner, outer = mid - below, above - mid
                gradient = 2 * inner * (mass - mass_below) - 2 * outer * (mass_above - mass)
                gradient = gradient + (inner**2 - outer**2) * slope
                falling = gradient < 0
                low, high = torch.where(falling, mid, low), torch.where(falling, high, mid)
            points[:, index] = (low + high) / 2
    return points.to(m.dtype)


def breakpoints_for(m: Tensor, count: int, density: Density, exact: bool) -> Tensor:
    """Breakpoints of a channel whose clip is m standard deviations, shape (C,) -> (C, n).

    The closed form where it holds and is wanted, the exact minimiser elsewhere. A constant channel
    (m infinite or NaN) gets p = 0 here; its caller works in absolute units and replaces it.
    """
    usable = torch.isfinite(m) & (m > 0)
    safe = torch.where(usable, m, torch.ones_like(m))
    if exact or count > 1:
        points = optimal_breakpoints(safe, count, density)
    else:
        low, high = CLOSED_FORM_RANGE
        points = closed_form_breakpoint(safe, density)
        outside = (safe < low) | (safe > high)
        if bool(outside.any()):
            points = torch.where(outside, optimal_breakpoint(safe, density), points)
        points = points.unsqueeze(-1)
    return torch.where(usable.unsqueeze(-1), points, torch.zeros_like(points))


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
