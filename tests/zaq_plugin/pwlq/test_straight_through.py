"""Gradients against finite differences of the straight-through surrogate, in float64."""

import itertools

import pytest
import torch

from zaq_plugin.pwlq import PWLQSpec, UniformSpec, fake_quantize, quantize


def surrogate(w, edges, spec, residual):
    """Fake quantization with round(v) replaced by v + its rounding residual, in float64.

    residual: (v_rounded - v) of each value within its piece, held constant.
    """
    one_sided = spec.symmetry == "one-sided"
    out = torch.zeros_like(w)
    for index in range(w.shape[0]):
        for k in range(w.shape[1]):
            r = w[index, k]
            side = 1 if spec.symmetry == "asymmetric" and float(r) < 0 else 0
            sign = 1.0 if float(r) >= 0 else (0.0 if one_sided else -1.0)
            magnitude = r.abs()
            e = edges[side, index]
            if float(magnitude) > float(e[-1]):
                out[index, k] = sign * e[-1]
                continue
            start = torch.zeros((), dtype=w.dtype)
            for end in e:
                if float(magnitude) <= float(end):
                    break
                start = end
            if spec.overlapping:
                start = torch.zeros((), dtype=w.dtype)
            v = (magnitude - start) / (end - start)
            out[index, k] = sign * (start + (end - start) * (v + residual[index, k]))
    return out


def residuals(w, edges, spec, quantized):
    out = torch.zeros_like(w)
    for index in range(w.shape[0]):
        for k in range(w.shape[1]):
            r = float(w[index, k])
            side = 1 if spec.symmetry == "asymmetric" and r < 0 else 0
            e = [0.0, *edges[side, index].tolist()]
            for start, end in itertools.pairwise(e):
                if abs(r) <= end:
                    out[index, k] = (abs(float(quantized[index, k])) - abs(r)) / (
                        end - (0.0 if spec.overlapping else start)
                    )
                    break
    return out


SPECS = [
    PWLQSpec(bits=4, symmetry="symmetric", grid="float", policy="given"),
    PWLQSpec(bits=3, symmetry="asymmetric", grid="int8", policy="given"),
    PWLQSpec(bits=4, symmetry="symmetric", grid="float", policy="given", shared_endpoints=True),
    PWLQSpec(bits=3, breakpoints=2, symmetry="asymmetric", grid="float", policy="given"),
    PWLQSpec(bits=2, breakpoints=3, symmetry="symmetric", grid="int8", policy="given"),
    PWLQSpec(bits=4, symmetry="one-sided", grid="float", policy="given"),
    PWLQSpec(bits=4, symmetry="symmetric", grid="float", policy="given", overlapping=True),
    UniformSpec(4),
    UniformSpec(4, "one-sided"),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.label)
def test_gradients_match_finite_differences(spec):
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(2, 23, generator=generator, dtype=torch.float64)
    if spec.symmetry == "one-sided":
        w = w.abs()
    ladder = torch.linspace(0.3, 1.4, spec.breakpoints + 1, dtype=torch.float64)
    edges = ladder.expand(spec.sides, 2, -1) * torch.tensor([1.0, 1.2]).view(1, 2, 1)
    edges = edges * torch.tensor([1.0, 0.9])[: spec.sides].view(-1, 1, 1)
    edges = edges.float().double()  # the kernel works in float32
    upstream = torch.randn(2, 23, generator=generator, dtype=torch.float64)
    values, learned = w.clone().requires_grad_(), edges.clone().requires_grad_()
    out = fake_quantize(values, spec, edges=learned)
    out.backward(upstream)
    residual = residuals(w, edges, spec, out.detach())

    def loss(x, e):
        return float((surrogate(x, e, spec, residual) * upstream).sum())

    h = 1e-6
    for index in range(edges.numel()):
        up, down = edges.clone(), edges.clone()
        up.view(-1)[index] += h
        down.view(-1)[index] -= h
        slope = (loss(w, up) - loss(w, down)) / (2 * h)
        assert float(learned.grad.view(-1)[index]) == pytest.approx(slope, rel=1e-4, abs=1e-5)
    for index in range(w.numel()):
        if spec.symmetry == "one-sided" and float(w.view(-1)[index]) <= 0:
            continue
        up, down = w.clone(), w.clone()
        up.view(-1)[index] += h
        down.view(-1)[index] -= h
        slope = (loss(up, edges) - loss(down, edges)) / (2 * h)
        assert float(values.grad.view(-1)[index]) == pytest.approx(slope, rel=1e-5, abs=1e-7)


def test_uniform_asymmetric_range_gradient():
    """Both ends share the step: moving one end by h moves the levels as the surrogate says."""
    w = torch.tensor([[-2.0, -0.61, 0.13, 0.77, 3.0]], dtype=torch.float64, requires_grad=True)
    edges = torch.tensor([[[1.5]], [[1.0]]], dtype=torch.float64, requires_grad=True)
    out = fake_quantize(w, UniformSpec(3, "asymmetric"), edges=edges)
    out.sum().backward()
    inside = out.detach()[0, 1:4] - w.detach()[0, 1:4]
    share = float(inside.sum()) / 2.5
    assert float(edges.grad[0]) == pytest.approx(share + 1, rel=1e-5)
    assert float(edges.grad[1]) == pytest.approx(share - 1, rel=1e-5)
    assert w.grad.tolist() == [[0.0, 1.0, 1.0, 1.0, 0.0]]


@pytest.mark.parametrize("spec", [*SPECS, UniformSpec(4, "asymmetric")], ids=lambda s: s.label)
def test_dead_channels_of_subnormal_weights_have_finite_gradients(spec):
    """Trained networks hold channels like 1e-40, where one over a piece's width is infinite."""
    dead = torch.tensor([0.0, 4e-41, 9e-41, -9e-41]).expand(1, -1)
    living = torch.tensor([0.1, 0.4, 0.9, -0.7]).expand(1, -1)
    ladder = torch.linspace(0.3, 0.9, spec.breakpoints + 1).view(1, 1, -1)
    ladder = ladder.expand(spec.sides, -1, -1)

    def gradient(channels, edges):
        learned = edges.clone().requires_grad_()
        fake_quantize(channels, spec, edges=learned).sum().backward()
        return learned.grad

    both = gradient(torch.cat([dead, living]), torch.cat([ladder * 1e-40, ladder], 1))
    assert both.isfinite().all()
    assert torch.equal(both[:, 1:], gradient(living, ladder))


def test_learned_breakpoint_through_a_sigmoid():
    """p = m sigmoid(theta): gradient descent on theta and m lowers the squared error."""
    w = torch.randn(4, 300, generator=torch.Generator().manual_seed(0))
    spec = PWLQSpec(symmetry="symmetric", grid="float", policy="given")
    theta = torch.full((4, 1), -2.5, requires_grad=True)
    m = w.abs().amax(1, keepdim=True).clone().requires_grad_()
    optimizer = torch.optim.Adam([theta, m], lr=0.02)
    errors = []
    for _ in range(150):
        edges = torch.cat([m * torch.sigmoid(theta), m], 1).unsqueeze(0)
        loss = (fake_quantize(w, spec, edges=edges) - w).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(float(loss.detach()))
    assert min(errors[-20:]) < 0.8 * errors[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("spec", [PWLQSpec(), PWLQSpec(grid="float"), UniformSpec(4)])
def test_equals_quantize_bit_for_bit_in_every_dtype(dtype, spec):
    w = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    out = fake_quantize(w.requires_grad_(), spec)
    assert out.dtype == dtype
    assert torch.equal(out, quantize(w, spec).dequantize())
    out.sum().backward()
    assert w.grad.dtype == dtype
