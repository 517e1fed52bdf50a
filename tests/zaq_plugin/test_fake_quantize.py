"""Fake-quantizers against the number format, torch's own operators and hand-computed gradients."""

import copy

import pytest
import torch

from zaq_plugin.fake_quantize import (
    ActivationFakeQuantize,
    PWLQActivationFakeQuantize,
    PWLQPerChannelFakeQuantize,
)
from zaq_plugin.observers import MinMaxObserver, PercentileObserver
from zaq_plugin.pwlq import PWLQSpec, quantize


def weight(seed: int = 0) -> torch.Tensor:
    return torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(seed))


def activation(seed: int = 0) -> torch.Tensor:
    return torch.randn(16, 33, generator=torch.Generator().manual_seed(seed)) * 2 + 1


@pytest.mark.parametrize("learnable", [False, True])
def test_weight_follows_while_observed_and_keeps_edges_when_frozen(learnable):
    spec = PWLQSpec(bits=4)
    fake = PWLQPerChannelFakeQuantize(spec, learnable=learnable)
    fake(weight())
    assert torch.equal(fake(3 * weight(1)), quantize(3 * weight(1), spec).dequantize())
    fake.disable_observer()
    before = fake.edges.detach().clone()
    out = fake(weight(2))
    assert torch.equal(fake.edges, before)
    assert torch.equal(out, quantize(weight(2), spec, edges=before).dequantize())
    fake.disable_fake_quant()
    assert torch.equal(fake(weight(2)), weight(2))


def test_training_solves_every_so_many_forwards_and_eval_always():
    spec = PWLQSpec(bits=4)
    fake = PWLQPerChannelFakeQuantize(spec, solve_every=3).train()
    fresh = []
    for seed in range(7):
        out = fake(weight(seed))
        fresh.append(torch.equal(out, quantize(weight(seed), spec).dequantize()))
    assert fresh == [True, False, False, True, False, False, True]
    fake(weight(7))
    fake.eval()
    assert torch.equal(fake(weight(8)), quantize(weight(8), spec).dequantize())
    with pytest.raises(ValueError, match="solve_every must be an int >= 1; got 0"):
        PWLQPerChannelFakeQuantize(spec, solve_every=0)


def test_frozen_from_the_start_still_solves_once():
    fake = PWLQPerChannelFakeQuantize(PWLQSpec(bits=3))
    fake.disable_observer()
    out = fake(weight())
    assert torch.equal(out, quantize(weight(), PWLQSpec(bits=3)).dequantize())
    edges = fake.edges.clone()
    fake(weight(1))
    assert torch.equal(fake.edges, edges)


def test_weight_gradient_is_straight_through_inside_the_clip():
    fake = PWLQPerChannelFakeQuantize(PWLQSpec(bits=4))
    w = weight().requires_grad_()
    fake(w).sum().backward()
    clip = fake.edges[..., 1].reshape(2, -1, 1, 1, 1)
    outside = (w > clip[0] * 1.001) | (w < -clip[1] * 1.001)
    inside = (w < clip[0] * 0.999) & (w > -clip[1] * 0.999)
    assert outside.any()
    assert bool((w.grad[inside] == 1).all())
    assert bool((w.grad[outside] == 0).all())


def test_learned_edges_stay_ordered_and_lower_the_error():
    fake = PWLQPerChannelFakeQuantize(
        PWLQSpec(bits=3, breakpoints=2, policy="gaussian"), learnable=True
    )
    w = weight()
    fake.disable_observer()
    start = (fake(w) - w).detach().square().mean()
    optimizer = torch.optim.Adam(fake.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        (fake(w) - w).square().mean().backward()
        optimizer.step()
    end = (fake(w) - w).detach().square().mean()
    assert end < 0.93 * start
    edges = fake.edges
    assert bool((edges[..., 1:] >= edges[..., :-1]).all())
    scale, zero_point = fake.calculate_qparams()
    stock = torch.quantize_per_channel(fake(w).detach(), scale, zero_point, 0, torch.qint8)
    assert torch.equal(stock.dequantize(), fake(w))


@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_activation_equals_torchs_operator(learnable, bits, symmetric):
    fake = ActivationFakeQuantize(bits=bits, symmetric=symmetric, learnable=learnable)
    fake(activation())
    fake.disable_observer()
    x = 3 * activation(1)  # some of it beyond the range
    scale, zero_point = fake.calculate_qparams()
    high = 2**bits - 1
    stock = torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero_point), 0, high)
    assert torch.equal(fake(x), stock)
    assert len(fake(x).unique()) <= 2**bits


def test_learned_step_has_lsqs_gradient():
    """Equation 3 and section 2.2 of the LSQ paper, term by term in float64."""
    fake = ActivationFakeQuantize(bits=4, learnable=True)
    fake(activation())
    fake.disable_observer()
    x = (2 * activation(1)).requires_grad_()
    fake(x).sum().backward()
    step, offset = float(fake.scale.detach()), int(fake.zero_point)
    total, passed = 0.0, []
    for value in x.detach().flatten().tolist():
        ratio = value / step
        if round(ratio) + offset > 15:
            total += 15 - offset
        elif round(ratio) + offset < 0:
            total += -offset
        else:
            total += round(ratio) - ratio
        passed.append(0 <= round(ratio) + offset <= 15)
    expected = total / (x.numel() * 15) ** 0.5
    assert float(fake.scale.grad) == pytest.approx(expected, rel=1e-4)
    assert x.grad.flatten().tolist() == [float(p) for p in passed]


def test_observers_are_exchangeable():
    fake = ActivationFakeQuantize(observer=PercentileObserver.with_args(percent=95.0), bits=4)
    plain = ActivationFakeQuantize(observer=MinMaxObserver, bits=4)
    fake(activation())
    plain(activation())
    assert float(fake.scale) < float(plain.scale)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PWLQPerChannelFakeQuantize(PWLQSpec(bits=4)),
        lambda: PWLQPerChannelFakeQuantize(PWLQSpec(bits=4), learnable=True),
        lambda: ActivationFakeQuantize(bits=6),
        lambda: ActivationFakeQuantize(bits=6, learnable=True),
        lambda: PWLQActivationFakeQuantize(PWLQSpec(bits=4)),
    ],
)
def test_copies_and_state_dicts(make):
    fake = make()
    fake(weight())
    fake.disable_observer()
    fresh = make()
    assert fresh.load_state_dict(fake.state_dict()).missing_keys == []
    copied = copy.deepcopy(fake)
    x = weight(1)
    assert torch.equal(fresh(x), fake(x))
    assert torch.equal(copied(x), fake(x))
    assert int(fresh.observer_enabled) == 0
    assert fresh.switches() == (False, True)


@pytest.mark.parametrize("learnable", [False, True])
def test_compiles_without_graph_breaks_once_frozen(learnable):
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(weight())
            self.fake_w = PWLQPerChannelFakeQuantize(PWLQSpec(bits=4), learnable=learnable)
            self.fake_x = ActivationFakeQuantize(bits=4, learnable=learnable)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.conv2d(self.fake_x(x), self.fake_w(self.w))

    layer = Layer()
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    layer(x)
    for module in (layer.fake_w, layer.fake_x):
        module.disable_observer()
    expected = layer(x)
    expected.sum().backward()
    gradient = layer.w.grad.clone()
    layer.zero_grad()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    out = compiled(x)
    out.sum().backward()
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(layer.w.grad, gradient)
    layer.fake_x.disable_fake_quant()
    layer.fake_w.disable_fake_quant()
    plain = torch.nn.functional.conv2d(x, layer.w)
    torch.testing.assert_close(compiled(x), plain)


def test_pwlq_activation_is_one_sided_after_relu_and_two_sided_else():
    x = activation()
    rectified = PWLQActivationFakeQuantize(PWLQSpec(bits=4))
    out = rectified(x.relu())
    assert rectified.format.symmetry == "one-sided"
    assert rectified.edges.shape == (1, 1, 2)
    assert len(out.unique()) <= rectified.format.num_levels
    uniform = ActivationFakeQuantize(bits=4)(x.relu())
    assert (out - x.relu()).square().mean() < (uniform - x.relu()).square().mean()
    rectified(x)
    assert rectified.format.symmetry == "asymmetric"
    assert rectified.edges.shape == (2, 1, 2)


def test_pwlq_activation_is_simulated_and_says_so():
    fake = PWLQActivationFakeQuantize()
    with pytest.raises(ValueError, match="simulated: no int8 kernel"):
        fake.calculate_qparams()
    fake.disable_observer()
    with pytest.raises(ValueError, match="has seen no data"):
        fake(activation())


def test_half_precision_activations_keep_their_type():
    fake = ActivationFakeQuantize()
    out = fake(activation().half())
    assert out.dtype == torch.float16
