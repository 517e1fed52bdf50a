"""Where teacher and student differ, against float64 arithmetic on features hooked by the test."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from zaq_plugin.pwlq import UniformSpec
from zaq_plugin.zero_shot import ZeroShotConfig
from zaq_plugin.zero_shot.feedback import Feedback, Pair

SHAPE = (3, 8, 8)
TAPS = ("stage1", "stage2")
QUICK = ZeroShotConfig(
    steps=4, batch_size=8, distilled_images=16, distill_steps=2, taps=TAPS, latent_dim=8
)


def feedback_of(student: nn.Module, model: nn.Module, **changes: object) -> Feedback:
    feedback = Feedback(QUICK.with_changes(**changes), Pair(student, SHAPE, float_model=model))
    feedback.place_taps()
    return feedback


def distance(mine: Tensor, other: Tensor) -> float:
    """Mean |CRM_P - CRM_Q|, by loops over channels."""

    def relations(maps: Tensor) -> list[list[float]]:
        rows = [maps[:, c].double().reshape(-1) for c in range(maps.shape[1])]
        return [[float(a @ b / (a.norm() * b.norm()).clamp(min=1e-12)) for a in rows] for b in rows]

    p, q = relations(mine), relations(other)
    gaps = [abs(x - y) for a, b in zip(p, q, strict=True) for x, y in zip(a, b, strict=True)]
    return sum(gaps) / len(gaps)


def features(model: nn.Module, images: Tensor) -> list[Tensor]:
    by_tap: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(n).register_forward_hook(
            lambda _m, _a, out, n=n: by_tap.update({n: out})
        )
        for n in TAPS
    ]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return [by_tap[n] for n in TAPS]


def test_distances_and_lambda(
    tiny: Callable[..., nn.Module], make_student: Callable[..., nn.Module]
) -> None:
    model = tiny()
    student = make_student(model, UniformSpec(bits=2))
    feedback = feedback_of(student, model)
    images = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(1))
    pairs = zip(features(feedback.pair.teacher, images), features(student, images), strict=True)
    apart = [distance(p, q) for p, q in pairs]
    before = {k: v.clone() for k, v in student.state_dict().items()}

    seen = feedback.watch(images)

    # λ is uniform until the first epoch has ended: D_f is the mean distance.
    assert seen["D_f"] == pytest.approx(sum(apart) / 2, rel=1e-4)
    total = sum(math.exp(d) for d in apart)
    for name, d in zip(TAPS, apart, strict=True):
        assert seen[f"λ {name}"] == pytest.approx(math.exp(d) / total, rel=1e-5)
    again = feedback.watch(images)
    expected = sum(d * math.exp(d) / total for d in apart)
    assert again["D_f"] == pytest.approx(expected, rel=1e-4)
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())


def test_where_the_loss_owns_lambda_it_is_left_alone(
    tiny: Callable[..., nn.Module], make_student: Callable[..., nn.Module]
) -> None:
    model = tiny()
    feedback = feedback_of(make_student(model, UniformSpec(bits=2)), model, alpha=0.1)
    feedback.watch(torch.randn(4, *SHAPE))
    assert feedback.layer_weights is not None
    assert feedback.layer_weights.values.tolist() == [0.5, 0.5]


def test_nothing_tapped(
    tiny: Callable[..., nn.Module], make_student: Callable[..., nn.Module]
) -> None:
    model = tiny()
    feedback = feedback_of(make_student(model, UniformSpec(bits=2)), model, feature_weight=0.0)
    assert feedback.watch(torch.randn(4, *SHAPE)) == {}
