"""Distances of outputs: with one channel, a worse student is further away."""

import math

import numpy as np
import pytest
import torch

from zaq_plugin.ptq.mixed_precision import kl_divergence
from zaq_plugin.ptq.output_distance import agreements, divergences, spread, threshold
from zaq_plugin.zero_shot.discrepancy import agreement, output_discrepancy, teacher_divergence

SINGLE = [(64,), (64, 1), (64, 1, 5, 4), (64, 1, 6)]


def draw(shape: tuple[int, ...], seed: int, mean: float = 0.0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=torch.float64) * 3 + mean


@pytest.mark.parametrize("shape", SINGLE)
@pytest.mark.parametrize("mean", [0.0, 200.0])
def test_a_single_output_is_measured_by_its_squared_error(shape, mean):
    teacher, noise = draw(shape, 1, mean), draw(shape, 2)
    p = teacher.numpy()
    distances = [
        float(divergences(teacher, teacher + part * noise).mean()) for part in (0.1, 0.2, 2.0)
    ]
    for part, value in zip((0.1, 0.2, 2.0), distances, strict=True):
        right = np.square(part * noise.numpy()).mean() / np.square(p - p.mean()).mean()
        assert value == pytest.approx(right, rel=1e-9)
        assert float(teacher_divergence(teacher, teacher + part * noise)) == pytest.approx(value)
        assert kl_divergence([teacher], [teacher + part * noise]) == pytest.approx(value)
    assert 0 < distances[0] < distances[1] < distances[2]
    assert float(divergences(teacher, teacher).sum()) == 0
    assert divergences(teacher, teacher).shape == (64,)


@pytest.mark.parametrize("shape", SINGLE)
def test_a_mask_agrees_by_its_sign_and_a_regression_by_its_mean(shape):
    for mean, border in ((0.0, 0.0), (200.0, None)):
        teacher, student = draw(shape, 1, mean), draw(shape, 3, mean)
        p, q = teacher.numpy(), student.numpy()
        line = p.mean() if border is None else border
        right = ((p > line) == (q > line)).mean()
        assert 0.3 < right < 0.7
        assert float(agreement(teacher, student)) == pytest.approx(right, abs=1e-6)
        assert float(agreements(teacher, teacher).mean()) == 1


def test_several_classes_are_measured_as_before():
    p, q = draw((6, 3, 2), 1), draw((6, 3, 2), 2)
    a, b = (torch.softmax(x, 1).numpy() for x in (p, q))
    right = (a * np.log(a / b)).sum(1).mean(1)
    np.testing.assert_allclose(divergences(p, q).numpy(), right, rtol=1e-9)
    tops = (p.argmax(1) == q.argmax(1)).double().mean(1)
    torch.testing.assert_close(agreements(p, q).double(), tops)


def test_the_temperature_says_nothing_to_one_output():
    p, q = draw((8, 1), 1), draw((8, 1), 2)
    assert float(teacher_divergence(p, q, 4.0)) == float(teacher_divergence(p, q))


def test_a_teacher_that_always_says_the_same_has_a_distance_too():
    teacher = torch.full((5, 1), 2.0)
    assert float(spread(teacher)) == 4
    assert float(divergences(teacher, teacher + 1).mean()) == 0.25
    zeros = torch.zeros(5, 1)
    assert math.isfinite(float(divergences(zeros, zeros).mean()))


def test_the_spread_takes_no_part_in_gradients():
    teacher = draw((8, 1), 1).requires_grad_()
    student = draw((8, 1), 2)
    divergences(teacher, student).mean().backward()
    right = 2 * (teacher - student) / spread(teacher) / 8
    torch.testing.assert_close(teacher.grad, right.detach())
    assert not spread(teacher).requires_grad
    assert not threshold(teacher).requires_grad


@pytest.mark.parametrize("value", [-math.inf, torch.finfo(torch.float32).min])
def test_masked_classes_take_no_part(value):
    p, q = draw((6, 4), 1).float(), draw((6, 4), 2).float()
    masked = [torch.cat([x, torch.full((6, 1), value)], 1).requires_grad_() for x in (p, q)]
    distances = divergences(*masked)
    torch.testing.assert_close(distances, divergences(p, q))
    torch.testing.assert_close(agreements(*masked), agreements(p, q))
    distances.sum().backward()
    assert bool(masked[0].grad.isfinite().all() and masked[1].grad.isfinite().all())
    right = (p - q).abs().sum() / 30
    torch.testing.assert_close(output_discrepancy(*masked), right)
