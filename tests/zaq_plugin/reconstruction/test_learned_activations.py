"""Learned grids of activations: LSQ against its formula, PWLQ against the fake-quantizer's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zaq_plugin.fake_quantize import PWLQActivationFakeQuantize
from zaq_plugin.ptq import calibrate, fold_batch_norm, simulate
from zaq_plugin.pwlq import PWLQSpec, UniformSpec
from zaq_plugin.reconstruction import ReconstructOptions, reconstruct
from zaq_plugin.reconstruction.learned_activations import (
    LearnedActivationEdges,
    LearnedStep,
    drop_mask,
    learned_activation,
)
from zaq_plugin.student import twin
from zaq_plugin.student.fake_quantizers import activation_slots, grid_of
from zaq_plugin.zero_shot import ZeroShotConfig, zero_shot_finetune


def activation(
    tiny: Callable[..., nn.Module], make_student: Callable[..., nn.Module]
) -> LearnedStep:
    place = activation_slots(make_student(tiny()))[1]
    learned = learned_activation(place)
    assert isinstance(learned, LearnedStep)
    return learned


def test_learned_step_rounds_as_torch(
    tiny: Callable[..., nn.Module], make_student: Callable[..., nn.Module]
) -> None:
    place = activation_slots(make_student(tiny()))[1]
    x = 3 * torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    module = place.module
    expected = torch.fake_quantize_per_tensor_affine(
        x, module.scale, module.zero_point, module.quant_min, module.quant_max
    )
    torch.testing.assert_close(LearnedStep(place)(x).detach(), expected, rtol=1e-6, atol=1e-6)


def test_dropped_values_pass_by_the_step(
    tiny: Callable[..., nn.Module], make_student: Callable[..., nn.Module]
) -> None:
    """Forward and backward as if the untouched parts were put in afterwards, bit for bit."""
    learned = activation(tiny, make_student)
    learned.drop = 0.25
    results = []
    for together in (True, False):
        learned.zero_grad()
        learned.rng = torch.Generator().manual_seed(5)
        x = 3 * torch.randn(64, 30, generator=torch.Generator().manual_seed(0))
        x.requires_grad_(True)
        if together:
            out = learned.train()(x)
        else:
            mask = drop_mask(x, 0.25, learned.rng)
            out = torch.where(mask > 0, x, learned.eval()(x))
        (out * torch.linspace(-1, 2, 30)).sum().backward()
        results.append((out.detach(), x.grad, learned.step.grad.clone()))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    untouched = (results[0][0] == x).double().mean()
    assert float(untouched) > 0.2


def test_learned_step_has_lsqs_gradients(
    tiny: Callable[..., nn.Module], make_student: Callable[..., nn.Module]
) -> None:
    learned = activation(tiny, make_student)
    x = (3 * torch.randn(50, generator=torch.Generator().manual_seed(0))).requires_grad_(True)
    weight = torch.randn(50, generator=torch.Generator().manual_seed(1))
    (learned(x) * weight).sum().backward()
    step, zero = float(learned.step.detach()), float(learned.zero_point)
    low, high = learned.low - zero, learned.high - zero
    to_step, to_x = 0.0, []
    for value, w in zip(x.detach().double().tolist(), weight.double().tolist(), strict=True):
        v = value / step
        inside = low <= v <= high
        to_step += w * (round(v) - v if inside else min(max(v, low), high))
        to_x.append(w if inside else 0.0)
    assert learned.step.grad is not None
    assert float(learned.step.grad) == pytest.approx(to_step, rel=1e-4)
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), to_x, rtol=1e-6)


def test_qdrop_leaves_a_share_alone(
    tiny: Callable[..., nn.Module], make_student: Callable[..., nn.Module]
) -> None:
    learned = activation(tiny, make_student)
    learned.drop, learned.rng = 0.25, torch.Generator().manual_seed(0)
    x = torch.rand(20000) * float(learned.step.detach()) * 10
    learned.train()
    untouched = (learned(x) == x).float().mean()
    assert 0.23 < float(untouched) < 0.27
    learned.eval()
    assert float((learned(x) == x).float().mean()) < 0.01


def pwlq_student(model: nn.Module, images: Tensor, bits: int = 2) -> nn.Module:
    """Weights and activations on PWLQ grids, the network's input uniform."""
    spec = PWLQSpec(bits=bits)
    student = simulate(fold_batch_norm(model), spec, spec)
    calibrate(student, images.split(16))
    return student


def one_sided(x: float, p: float, m: float, bits: int) -> tuple[float, float, float]:
    """PWLQ of one value >= 0 by its formula, and the straight-through gradients to p and m."""
    center, tail = 2**bits - 1, 2**bits
    if x >= m:
        return m, 0.0, 1.0
    if x <= p:
        step = p / center
        q = round(x / step) * step
        return q, (q - x) / p, 0.0
    step = (m - p) / tail
    q = p + round((x - p) / step) * step
    return q, -(q - x) / (m - p), (q - x) / (m - p)


def test_pwlq_activations_start_as_the_fake_quantizer(
    tiny: Callable[..., nn.Module], smooth_images: Callable[..., Tensor]
) -> None:
    student = pwlq_student(tiny(), smooth_images(32))
    places = activation_slots(student)
    kinds = [type(place.module) for place in places]
    assert kinds.count(PWLQActivationFakeQuantize) == len(places) - 1  # but the network's input
    place = places[1]
    learned = learned_activation(place)
    assert isinstance(learned, LearnedActivationEdges)
    x = 2 * torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).relu()
    assert torch.equal(learned(x).detach(), place.module(x))
    with torch.no_grad():
        learned.learned.uniform_(-0.3, 0.3, generator=torch.Generator().manual_seed(1))
    expected = learned(x).detach()
    assert not torch.equal(expected, place.module(x))
    learned.bake(place)
    assert torch.equal(place.module(x), expected)


def test_pwlq_activations_have_the_formulas_gradients(
    tiny: Callable[..., nn.Module], smooth_images: Callable[..., Tensor]
) -> None:
    spec = PWLQSpec(bits=2, grid="float")
    student = simulate(fold_batch_norm(tiny()), UniformSpec(bits=4), spec)
    calibrate(student, smooth_images(32).split(16))
    place = activation_slots(student)[1]
    learned = learned_activation(place)
    assert learned.spec.symmetry == "one-sided"
    p, m = grid_of(place).double().flatten().tolist()
    x = (1.5 * m * torch.rand(60, generator=torch.Generator().manual_seed(2))).double()
    weight = torch.randn(60, generator=torch.Generator().manual_seed(3)).double()
    values = [one_sided(value, p, m, 2) for value in x.tolist()]
    out = learned(x.float())
    np.testing.assert_allclose(out.detach().numpy(), [f[0] for f in values], rtol=1e-4, atol=1e-6)
    (out * weight.float()).sum().backward()
    to_p = sum(f[1] * w for f, w in zip(values, weight.tolist(), strict=True))
    to_m = sum(f[2] * w for f, w in zip(values, weight.tolist(), strict=True))
    # p = p0 exp(a), m = p0 exp(a) + (m0 - p0) exp(b)
    expected = [p * (to_p + to_m), (m - p) * to_m]
    assert learned.learned.grad is not None
    np.testing.assert_allclose(learned.learned.grad.flatten().numpy(), expected, rtol=1e-3)


def test_reconstruction_tunes_pwlq_activations(
    tiny: Callable[..., nn.Module], smooth_images: Callable[..., Tensor]
) -> None:
    images = smooth_images(64)
    student = pwlq_student(tiny(), images)
    before = [grid_of(place).clone() for place in activation_slots(student)]
    results = reconstruct(
        student, twin(student), images, ReconstructOptions(iterations=60, batch_size=16)
    )
    moved = [
        not torch.equal(grid_of(place), old)
        for place, old in zip(activation_slots(student), before, strict=True)
    ]
    assert sum(r.after < 0.9 * r.before for r in results) > len(results) / 2
    assert sum(moved) > len(moved) / 2


def test_zero_shot_trains_pwlq_activations(
    tiny: Callable[..., nn.Module], smooth_images: Callable[..., Tensor]
) -> None:
    model, images = tiny(), smooth_images(48)
    student = pwlq_student(model, images)
    config = ZeroShotConfig(
        steps=6, batch_size=8, reconstruct_iterations=20, validate_every=3, step_lr=1e-2
    )
    result = zero_shot_finetune(
        student, config, image_shape=(3, 8, 8), float_model=model, images=images
    )
    assert result.best is not None
    assert result.best.divergence <= result.start.divergence  # type: ignore[attr-defined]


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_drops_are_independent_bytes(share: float) -> None:
    rng = torch.Generator().manual_seed(5)
    mask = drop_mask(torch.empty(3, 7, 1001), share, rng)
    assert mask.shape == (3, 7, 1001)
    assert mask.unique().tolist() == [0.0, 1.0]
    flat = mask.flatten().double()
    assert abs(float(flat.mean()) - share) < 4 * (share * (1 - share) / len(flat)) ** 0.5
    for lag in (1, 2, 3, 4, 7, 8):  # neighbours share a random word
        together = float((flat[lag:] * flat[:-lag]).mean())
        assert abs(together - share**2) < 0.02
    assert not drop_mask(torch.empty(9), 0.0, rng).any()


def test_zero_shot_calibrates_pwlq_activations_anew(
    tiny: Callable[..., nn.Module], smooth_images: Callable[..., Tensor]
) -> None:
    """What a student saw before leaves no trace in its ranges."""
    model, images = tiny(), smooth_images(48)
    config = ZeroShotConfig(steps=0, reconstruct=False, batch_size=8)
    results = []
    for before in (images, 5 * images - 3):
        student = pwlq_student(model, before)
        zero_shot_finetune(student, config, image_shape=(3, 8, 8), float_model=model, images=images)
        results.append([grid_of(place) for place in activation_slots(student)])
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)
