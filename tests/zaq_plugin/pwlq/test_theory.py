"""The paper's error analysis against numerical integration and brute force."""

import dataclasses

import numpy as np
import pytest
import torch
from reference import DENSITIES, integrated_error
from scipy import optimize

from zaq_plugin.pwlq import PWLQSpec, quantize, solve_edges
from zaq_plugin.pwlq.theory import (
    CLOSED_FORM_RANGE,
    closed_form_breakpoint,
    error_derivative,
    expected_error,
    optimal_breakpoint,
    optimal_breakpoints,
    uniform_expected_error,
)

LAWS = ["gaussian", "laplacian"]


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("density", LAWS)
@pytest.mark.parametrize("m", [8.0, 10.0])
def test_expected_error_is_the_integral(density, m):
    for p in (0.5, 1.0, 2.0, 3.5):
        ours = float(expected_error(tensor(p), tensor(m), 4, density))
        assert ours == pytest.approx(integrated_error(p, m, 4, density), rel=1e-6)


@pytest.mark.parametrize("density", LAWS)
def test_derivative_is_the_slope_of_the_error(density):
    p, m = torch.meshgrid(tensor(0.3, 0.8, 1.2), tensor(3.0, 5.0, 10.0), indexing="ij")
    h = 1e-6
    slope = (expected_error(p + h, m, 4, density) - expected_error(p - h, m, 4, density)) / (2 * h)
    constant = 1 / (12 * (2**3 - 1) ** 2)
    torch.testing.assert_close(
        2 * constant * error_derivative(p, m, density), slope, rtol=1e-5, atol=1e-10
    )


@pytest.mark.parametrize("density", LAWS)
def test_exact_minimiser_against_scipy(density):
    m = torch.logspace(-1, 2, 60, dtype=torch.float64)
    ours = optimal_breakpoint(m, density)
    for clip, p in zip(m.tolist(), ours.tolist(), strict=True):
        optimum = optimize.minimize_scalar(
            lambda x, clip=clip: float(expected_error(tensor(x), tensor(clip), 4, density)),
            bounds=(0, clip / 2),
            method="bounded",
            options={"xatol": 1e-9 * clip},
        )
        assert p == pytest.approx(optimum.x, rel=1e-3, abs=1e-3 * clip)
        assert 0 < p <= clip / 2 + 1e-12


@pytest.mark.parametrize(("density", "worst"), [("gaussian", 0.005), ("laplacian", 0.02)])
def test_closed_form_costs_almost_nothing_on_its_range(density, worst):
    """The supplement's Figures 2 and 3: the fits hold for 3 <= m <= 10."""
    m = torch.linspace(*CLOSED_FORM_RANGE, 141, dtype=torch.float64)
    fitted, exact = closed_form_breakpoint(m, density), optimal_breakpoint(m, density)
    excess = expected_error(fitted, m, 4, density) / expected_error(exact, m, 4, density) - 1
    assert (excess >= -1e-12).all()
    assert excess.max() < worst
    assert ((fitted - exact).abs() / m).max() < 0.02


def test_closed_form_is_p_and_not_p_over_m():
    """The supplement's misprint: at m = 3 the figure shows p*/m = 0.387."""
    m = tensor(3.0)
    assert float(closed_form_breakpoint(m, "gaussian") / m) == pytest.approx(0.387, abs=5e-4)


@pytest.mark.parametrize("density", LAWS)
@pytest.mark.parametrize("m", [1.0, 3.0, 6.0, 12.0])
def test_error_is_convex_in_p(density, m):
    p = torch.linspace(0.001, m / 2, 2000, dtype=torch.float64)
    error = expected_error(p, tensor(m), 4, density)
    assert (error[2:] - 2 * error[1:-1] + error[:-2] > -1e-13).all()


@pytest.mark.parametrize("density", LAWS)
@pytest.mark.parametrize("bits", range(2, 9))
def test_bound_on_the_ratio_to_the_uniform_grid(density, bits):
    """Lemma 2: E(p*) <= ((2^b - 1) / (2^(b-1) - 1))^2 / 16 of the uniform grid's error.

    That is the ratio at p = m/2, 9/16 for b = 2 and falling to 1/4.
    """
    m = torch.linspace(1, 12, 100, dtype=torch.float64)
    best = expected_error(optimal_breakpoint(m, density), m, bits, density)
    ratio = best / uniform_expected_error(m, bits)
    assert (ratio <= ((2**bits - 1) / (2 ** (bits - 1) - 1)) ** 2 / 16 + 1e-9).all()
    assert (ratio < 9 / 16 + 1e-9).all()


@pytest.mark.parametrize("density", LAWS)
@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_breakpoints_against_scipy(density, count):
    law = DENSITIES[density]
    for clip in (1.5, 3.0, 5.0, 9.0):

        def objective(points, clip=clip):
            edges = np.concatenate([[0], np.sort(np.clip(points, 0, clip)), [clip]])
            mass = law.cdf(edges)
            mass[-1] = 1.0
            return float((np.diff(edges) ** 2 * np.diff(mass)).sum())

        ours = optimal_breakpoints(tensor(clip), count, density)[0].numpy()
        assert (np.diff(np.concatenate([[0], ours, [clip]])) > 0).all()
        starts = np.linspace(0.2, 0.7, count) * clip
        optimum = min(
            (
                optimize.minimize(
                    objective,
                    starts * factor,
                    method="Nelder-Mead",
                    options={"xatol": 1e-8, "fatol": 1e-14, "maxiter": 4000},
                )
                for factor in (0.5, 0.8, 1.2)
            ),
            key=lambda result: result.fun,
        )
        assert objective(ours) <= optimum.fun * (1 + 1e-6)


@pytest.mark.parametrize("density", LAWS)
def test_policy_uses_the_published_formula_on_weights(density):
    """At least 99.9 % of weights get the value that the published formula gives."""
    generator = np.random.default_rng(0)
    draw = {"gaussian": generator.standard_normal, "laplacian": generator.laplace}[density]
    w = torch.from_numpy(draw(size=(64, 1152))).float() * 0.02
    spec = PWLQSpec(policy=density, grid="float", symmetry="symmetric", shared_endpoints=True)
    ours = quantize(w, spec).dequantize().double().numpy()
    from reference import published_pwlq

    different = inside = 0
    for channel in range(64):
        r = w[channel].double().numpy()
        m, sigma = np.abs(r).max(), r.std()
        fit = {
            "gaussian": np.log(0.8614 * m / sigma + 0.6079),
            "laplacian": 0.8030 * np.sqrt(m / sigma) - 0.3167,
        }[density]
        if not 3 <= m / sigma <= 10:
            continue
        inside += 1
        expected = published_pwlq(r, 4, m, fit * sigma)
        different += int((np.abs(expected - ours[channel]) > 1e-5 * m).sum())
    assert inside > 48
    assert different <= 1e-3 * inside * w.shape[1]


def test_outside_its_range_the_closed_form_gives_way_to_the_minimiser():
    w = torch.tensor([[-1.0, 1.0] * 8, [0.01] * 15 + [5.0]])
    fitted = solve_edges(w, PWLQSpec(policy="gaussian", symmetry="symmetric"))
    exact = solve_edges(w, PWLQSpec(policy="gaussian-exact", symmetry="symmetric"))
    assert torch.equal(fitted[:, 0], exact[:, 0])
    assert not torch.equal(fitted[:, 1], exact[:, 1])  # m / sigma = 4: the fit holds


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_joint_search_finds_what_brute_force_finds(count, shared):
    """Within 3 % of the best of a fine grid over clip and breakpoints, by the true error."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(3, 500, generator=generator) ** 3
    spec = PWLQSpec(
        bits=3, breakpoints=count, symmetry="symmetric", grid="float", shared_endpoints=shared
    )
    ours = (quantize(w, spec).dequantize() - w).double().square().sum(1)
    fixed = dataclasses.replace(spec, policy="given")
    best = torch.full((3,), torch.inf, dtype=torch.float64)
    clip = w.abs().amax(1, keepdim=True)
    ratios = torch.linspace(0.04, 0.8, 39 if count == 1 else 16).tolist()
    pairs = (
        [(p,) for p in ratios] if count == 1 else [(p, q) for p in ratios for q in ratios if p < q]
    )
    for m in torch.linspace(0.2, 1, 33 if count == 1 else 12).tolist():
        for points in pairs:
            edges = (clip * torch.tensor([[m * p for p in points] + [m]])).unsqueeze(0)
            error = (quantize(w, fixed, edges=edges).dequantize() - w).double().square().sum(1)
            best = torch.minimum(best, error)
    assert (ours <= best * 1.03).all()


def test_search_stays_at_the_largest_weight_and_beats_the_closed_form():
    w = torch.randn(32, 500, generator=torch.Generator().manual_seed(1))
    for shared in (False, True):
        base = {"symmetry": "symmetric", "grid": "float", "shared_endpoints": shared}
        searched = PWLQSpec(policy="search", **base)
        edges = solve_edges(w, searched)
        assert torch.equal(edges[0, :, 1], w.abs().amax(1))
        assert (edges[0, :, 0] <= edges[0, :, 1] / 2 * (1 + 1e-6)).all()
        error = (quantize(w, searched).dequantize() - w).square().sum()
        closed = quantize(w, PWLQSpec(policy="gaussian", **base)).dequantize()
        assert error < (closed - w).square().sum()
