"""An independent float64 reference: brute force over levels, straight from the paper's formulas."""

import itertools

import numpy as np
from scipy import integrate, stats

PWLQ_CASES = [
    {"bits": bits, "breakpoints": n, "symmetry": symmetry, "shared_endpoints": shared}
    for bits, n, symmetry, shared in itertools.product(
        (2, 3, 4, 6), (1, 2, 3), ("symmetric", "asymmetric", "one-sided"), (False, True)
    )
]


def uni(r, bits, low, high, offset):
    """The paper's uniform quantizer, papers' equation for uni(r; b, lo, hi, z)."""
    step = (high - low) / (2**bits - 1)
    return step * np.round((np.clip(r, low, high) - offset) / step) + offset


def published_pwlq(r, bits, m, p):
    """The paper's pw(r; b, m, p), non-overlapping."""
    center = np.sign(r) * uni(np.abs(r), bits - 1, 0, p, 0)
    tail = np.sign(r) * uni(np.abs(r), bits - 1, p, m, p)
    return np.where(np.abs(r) <= p, center, tail)


def published_overlapping(r, bits, m, p):
    """The ablation: the tail's grid spans [-m, m] with offset 0."""
    center = np.sign(r) * uni(np.abs(r), bits - 1, 0, p, 0)
    tail = np.sign(r) * uni(np.abs(r), bits - 1, 0, m, 0)
    return np.where(np.abs(r) <= p, center, tail)


def side_levels(edges, bits, one_sided, shared):
    """Positive levels by listing every piece's grid; edges are p_1..p_n, m."""
    per_piece = 2**bits if one_sided else 2 ** (bits - 1)
    levels = {0.0}
    start = 0.0
    for index, end in enumerate(edges):
        if index == 0 or shared:
            levels |= set(start + (end - start) * np.arange(per_piece) / (per_piece - 1))
        else:
            levels |= set(start + (end - start) * np.arange(1, per_piece + 1) / per_piece)
        start = end
    return np.array(sorted(levels))


def channel_levels(edges, bits, symmetry, shared):
    """All levels of a channel, float64; edges (sides, n + 1)."""
    positive = side_levels(edges[0], bits, symmetry == "one-sided", shared)
    if symmetry == "one-sided":
        return positive
    negative = side_levels(edges[-1], bits, False, shared)
    return np.unique(np.concatenate([-negative, positive]))


def nearest_error(r, levels):
    """Distance of every value to its nearest level, by brute force."""
    return np.abs(r[:, None] - levels[None, :]).min(1)


DENSITIES = {
    "gaussian": stats.norm(),
    "laplacian": stats.laplace(scale=1 / np.sqrt(2)),
}


def integrated_error(p, m, bits, density):
    """Expected squared error of one breakpoint, by integrating the density.

    The paper spreads the quantization error of a piece evenly, so a piece of width w contributes
    C(b-1) w^2 times the probability of the piece; both pieces together hold all of the mass.
    """
    law = DENSITIES[density]
    constant = 1 / (12 * (2 ** (bits - 1) - 1) ** 2)
    center = integrate.quad(law.pdf, -p, p)[0]
    return constant * (p**2 * center + (m - p) ** 2 * (1 - center))
