"""Weight plots: bars, levels, marks and errors against direct computation."""

import math

import numpy as np
import pytest
import torch

from zaq_plugin.pwlq import PWLQSpec, UniformSpec, quantize, solve_edges
from zaq_plugin.report.plots import error_curve, error_over_breakpoint, weight_histogram


def weights(channels=5, count=400, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(channels, count, generator=generator) * 0.1


@pytest.mark.parametrize(
    "spec",
    [
        PWLQSpec(),
        PWLQSpec(symmetry="symmetric", grid="float"),
        PWLQSpec(breakpoints=2),
        UniformSpec(bits=4),
        UniformSpec(bits=4, symmetry="asymmetric", clip="mse"),
    ],
    ids=lambda s: s.label,
)
def test_strip_shows_every_level_of_the_channel(read_plot, spec):
    w = weights()
    q = quantize(w, spec)
    plot = read_plot(weight_histogram(w, q, channel=3, name="conv"), panel=2)
    drawn = plot.xs("levels-center")
    if spec.kind == "pwlq":
        tail = plot.xs("levels-tail")
        p = solve_edges(w, spec)[:, 3, 0]
        assert tail.min() < -float(p[-1]) + 1e-3
        assert tail.max() > float(p[0]) - 1e-3
        assert drawn.min() >= -float(p[-1]) - 1e-3
        assert drawn.max() <= float(p[0]) + 1e-3
        drawn = np.sort(np.concatenate([drawn, tail]))
    expected = np.sort((q.codebook[3].double() * q.scale[3].double()).numpy())
    np.testing.assert_allclose(drawn, expected, atol=2e-3 * float(w.abs().max()))


def test_histogram_counts_every_weight_of_the_channel(read_plot):
    w = weights()
    plot = read_plot(weight_histogram(w, quantize(w, PWLQSpec()), channel=1))
    scale = plot._scale("y")
    heights = []
    for path in plot.axes.iter("{http://www.w3.org/2000/svg}path"):
        if "opacity: 0.55" not in (path.get("style") or ""):
            continue
        numbers = [(float(x), float(y)) for x, y in _points(path.get("d") or "")]
        if len(numbers) == 4:
            top, bottom = min(y for _, y in numbers), max(y for _, y in numbers)
            heights.append(float(scale(top) - scale(bottom)))
    counts = np.histogram(w[1].numpy(), bins=len(heights))[0]
    np.testing.assert_allclose(heights, counts, atol=0.05)
    assert sum(counts) == w.shape[1]


def _points(path):
    parts = path.replace("M", "").replace("L", "").replace("z", "").split()
    return list(zip(parts[::2], parts[1::2], strict=True))


def test_default_channel_has_the_median_maximum(read_plot):
    w = weights(channels=3)
    w *= torch.tensor([[1.0], [9.0], [3.0]])
    texts = read_plot(weight_histogram(w, quantize(w, PWLQSpec()), name="conv")).texts()
    assert any("conv, channel 2" in t for t in texts)
    assert {"p", "−p", "m", "−m"} <= set(texts)


def test_one_sided_and_per_tensor_weights(read_plot):
    w = weights().abs()
    spec = PWLQSpec(symmetry="one-sided")
    texts = read_plot(weight_histogram(w, quantize(w, spec, None))).texts()
    assert "p" in texts
    assert "−p" not in texts


def test_given_edges_are_the_marked_ones():
    w = weights()
    spec = PWLQSpec(policy="given", symmetry="symmetric")
    edges = torch.tensor([0.1, 0.3]).expand(1, 5, 2).contiguous()
    q = quantize(w, spec, edges=edges)
    first = weight_histogram(w, q, edges=edges)
    assert first != weight_histogram(w, q, edges=edges * 0.9)


def test_histogram_refuses_strangers():
    w = weights()
    q = quantize(w, PWLQSpec())
    with pytest.raises(ValueError, match=r"w has shape \(5, 399\), q \(5, 400\)"):
        weight_histogram(w[:, 1:], q)
    with pytest.raises(ValueError, match="channel 5 does not exist; .* channels 0 to 4"):
        weight_histogram(w, q, channel=5)


def reference_error(w: np.ndarray, m: np.ndarray, fraction: float, bits: int) -> float:
    """Brute force over the paper's levels, float64: mean squared error over signal power."""
    steps = 2 ** (bits - 1) - 1
    total = 0.0
    for row, clip in zip(w, m, strict=True):
        p = clip * fraction
        center = np.linspace(0, p, steps + 1)
        tail = np.linspace(p, clip, steps + 1)
        for value in row:
            size = min(abs(value), clip)
            levels = center if size <= p else tail
            total += (abs(value) - levels[np.abs(levels - size).argmin()]) ** 2
    return total / float((w**2).sum())


def test_curve_of_weights_is_the_brute_force_error_and_is_what_is_drawn(read_plot):
    w = weights(3, 200)
    spec = PWLQSpec(
        policy="gaussian", symmetry="symmetric", grid="float", shared_endpoints=True, bits=3
    )
    curve = error_curve(w, spec)
    m = w.double().abs().amax(1).numpy()
    for index in range(0, len(curve.fractions), 6):
        expected = reference_error(w.double().numpy(), m, float(curve.fractions[index]), 3)
        assert float(curve.errors[index]) == pytest.approx(expected, rel=2e-3)
    ((best, error),) = curve.marks.values()
    assert error == float(curve.errors.min())
    assert best == float(curve.fractions[curve.errors.argmin()])
    plot = read_plot(error_over_breakpoint(w, spec, name="conv"))
    line = plot.line("error")
    np.testing.assert_allclose(line[:, 0], curve.fractions.numpy(), atol=2e-3)
    np.testing.assert_allclose(line[:, 1], 10 * np.log10(curve.errors.numpy()), atol=0.03)
    np.testing.assert_allclose(plot.line("mark-0"), [[best, 10 * math.log10(error)]], atol=0.03)
    assert any("3 MAC / 4 stored bits" in t for t in plot.texts())


def test_lines_are_what_the_formats_reach():
    w = weights()
    spec = PWLQSpec()
    lines = error_curve(w, spec).lines

    def error(other) -> float:
        values = quantize(w, other).dequantize().double()
        return float((values - w.double()).square().sum() / w.double().square().sum())

    assert lines["joint: each channel its own p and m"] == pytest.approx(error(spec), rel=1e-6)
    for bits in (4, 5):
        uniform = UniformSpec(bits=bits, symmetry="asymmetric", clip="mse")
        line = lines[f"uniform, best clip, {bits} bits stored"]
        assert line == pytest.approx(error(uniform), rel=1e-6)


@pytest.mark.parametrize("density", ["gaussian", "laplacian"])
def test_curve_of_a_distribution_is_step_squared_over_twelve_times_mass(density):
    m, bits = 4.0, 4
    curve = error_curve(density, PWLQSpec(symmetry="symmetric"), clip=m)
    step = 1 / (2 ** (bits - 1) - 1)
    for fraction, error in zip(curve.fractions.tolist(), curve.errors.tolist(), strict=True):
        p = fraction * m
        inside = (
            math.erf(p / math.sqrt(2)) if density == "gaussian" else 1 - math.exp(-(2**0.5) * p)
        )
        expected = ((p * step) ** 2 * inside + ((m - p) * step) ** 2 * (1 - inside)) / 12
        assert error == pytest.approx(expected, rel=1e-9)
    best = curve.marks["exact optimal p/m"]
    assert best[1] <= float(curve.errors.min()) * (1 + 1e-9)
    assert curve.marks["closed-form p/m"][0] == pytest.approx(best[0], abs=0.01)
    assert curve.lines["uniform, 5 bits stored"] == pytest.approx((8 / 31) ** 2 / 12)


def test_closed_form_is_not_shown_outside_its_interval():
    assert list(error_curve("gaussian", PWLQSpec(), clip=2.0).marks) == ["exact optimal p/m"]


def test_curve_refuses_what_is_no_curve():
    with pytest.raises(ValueError, match="curve for one breakpoint only, got 2"):
        error_curve("gaussian", PWLQSpec(breakpoints=2))
    with pytest.raises(ValueError, match="unknown distribution 'cauchy'; expected 'gaussian'"):
        error_curve("cauchy", PWLQSpec())


def test_given_policy_takes_the_joint_clip():
    w = weights()
    swept = error_curve(w, PWLQSpec(policy="given"))
    assert torch.equal(swept.errors, error_curve(w, PWLQSpec()).errors)


def test_an_all_zero_tensor_has_a_curve():
    assert error_curve(torch.zeros(2, 8), PWLQSpec()).errors.eq(0).all()
    assert "<svg" in error_over_breakpoint(torch.zeros(2, 8), PWLQSpec())
