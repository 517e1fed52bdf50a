from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from zaq_plugin.pwlq import PWLQSpec, QuantSpec, UniformSpec
from zaq_plugin.zero_shot.config import ZeroShotConfig
from zaq_plugin.zero_shot.learner import Learner

SPECS: dict[str, QuantSpec] = {
    "uniform": UniformSpec(bits=2, symmetry="asymmetric"),
    "pwlq": PWLQSpec(bits=3),
}


def train(learner: Learner, student: nn.Module, x: Tensor, y: Tensor, steps: int) -> None:
    for _ in range(steps):
        learner.update((student(x) - y).square().mean())


@pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))
def test_it_learns_and_what_is_handed_over_is_what_was_learned(
    spec: QuantSpec,
    tiny: Callable[..., nn.Module],
    make_student: Callable[..., nn.Module],
    smooth_images: Callable[..., Tensor],
) -> None:
    model = tiny()
    student = make_student(model, spec)
    x = smooth_images(32)
    y = model(x).detach()
    start = float((student(x) - y).square().mean().detach())
    learner = Learner(student, x[:2], ZeroShotConfig(steps=60, student_lr=1e-2))
    train(learner, student, x, y, 60)
    learned = student(x).detach()
    learner.detach()
    handed = student(x).detach()
    torch.testing.assert_close(handed, learned, rtol=1e-3, atol=1e-3 * float(y.std()))
    assert float((handed - y).square().mean()) < start


def test_a_model_without_gradients_is_refused(
    tiny: Callable[..., nn.Module],
    make_student: Callable[..., nn.Module],
    smooth_images: Callable[..., Tensor],
) -> None:
    student = make_student(tiny().requires_grad_(False))
    config = ZeroShotConfig(steps=6, step_lr=0, edge_lr=0)
    text = r"nothing to train: none of the \d+ parameters .* call requires_grad_\(True\)"
    with pytest.raises(ValueError, match=text):
        Learner(student, smooth_images(2), config)


def test_judging_leaves_training_alone(
    tiny: Callable[..., nn.Module],
    make_student: Callable[..., nn.Module],
    smooth_images: Callable[..., Tensor],
) -> None:
    model = tiny()
    x = smooth_images(16)
    y = model(x).detach()

    def run(judged: bool) -> Tensor:
        student = make_student(model)
        learner = Learner(student, x[:2], ZeroShotConfig(steps=6, ema_decay=0.9))
        for _ in range(6):
            train(learner, student, x, y, 1)
            if judged:
                with learner.averaged(), learner.judged():
                    student(x)
        learner.detach()
        return student(x).detach()

    assert torch.equal(run(True), run(False))


def test_moving_average_is_slower_than_the_student(
    tiny: Callable[..., nn.Module],
    make_student: Callable[..., nn.Module],
    smooth_images: Callable[..., Tensor],
) -> None:
    model, x = tiny(), smooth_images(16)
    student = make_student(model)
    learner = Learner(student, x[:2], ZeroShotConfig(steps=5, ema_decay=0.9, schedule="constant"))
    first = [p.detach().clone() for p in learner.trained]
    train(learner, student, x, model(x).detach(), 5)
    moved = sum(float((p - f).abs().sum()) for p, f in zip(learner.trained, first, strict=True))
    lag = sum(float((m - f).abs().sum()) for m, f in zip(learner.average, first, strict=True))
    assert 0 < lag < moved


def test_crossing_scales_the_mean_update(
    tiny: Callable[..., nn.Module],
    make_student: Callable[..., nn.Module],
    smooth_images: Callable[..., Tensor],
) -> None:
    model, x = tiny(), smooth_images(16)
    student = make_student(model)
    config = ZeroShotConfig(steps=5, crossing=20.0, edge_lr=0.0, step_lr=0.0)
    learner = Learner(student, x[:2], config)
    before = [s.parameter.detach().clone() for s in learner.weights]
    train(learner, student, x, model(x).detach(), 1)
    for slot, old in zip(learner.weights, before, strict=True):
        levels = slot.levels()
        gap = float((levels[:, 1:] - levels[:, :-1]).mean())
        moved = float((slot.parameter - old).abs().mean())
        assert moved == pytest.approx(0.02 * gap, rel=1e-2)


def test_cosine_schedule_and_clipping(
    tiny: Callable[..., nn.Module],
    make_student: Callable[..., nn.Module],
    smooth_images: Callable[..., Tensor],
) -> None:
    model, x = tiny(), smooth_images(16)
    student = make_student(model)
    config = ZeroShotConfig(
        steps=4,
        optimizer="sgd",
        momentum=0.0,
        grad_clip=1e-3,
        student_lr=0.5,
        lr_warmup=0.5,
        relative_lr=False,
    )
    learner = Learner(student, x[:2], config)
    rates = []
    for _ in range(4):
        before = [p.detach().clone() for p in learner.trained]
        train(learner, student, x, 100 * model(x).detach(), 1)
        group = learner.optimizer.param_groups[0]
        rates.append(group["lr"])
        first = group["params"][0]
        position = next(i for i, p in enumerate(learner.trained) if p is first)
        assert float((first - before[position]).norm()) <= 1.001e-3 * group["lr"]
    assert rates == pytest.approx([0.25, 0.5 * 0.853553, 0.25, 0.5 * 0.146447], rel=1e-4)


def test_state_round_trip(
    tiny: Callable[..., nn.Module],
    make_student: Callable[..., nn.Module],
    smooth_images: Callable[..., Tensor],
) -> None:
    model, x = tiny(), smooth_images(16)
    y = model(x).detach()
    config = ZeroShotConfig(steps=6, ema_decay=0.9)
    one, two = make_student(model), make_student(model)
    first, second = Learner(one, x[:2], config), Learner(two, x[:2], config)
    train(first, one, x, y, 3)
    second.load_state_dict(first.state_dict())
    train(first, one, x, y, 3)
    train(second, two, x, y, 3)
    first.detach()
    second.detach()
    assert torch.equal(one(x), two(x))


def test_one_rate_serves_all_widths(
    tiny: Callable[..., nn.Module],
    make_student: Callable[..., nn.Module],
    smooth_images: Callable[..., Tensor],
) -> None:
    """The first Adam step moves a weight by its rate: a share of the distance of its levels."""
    model, x = tiny(), smooth_images(16)
    for bits in (2, 4):
        student = make_student(model, UniformSpec(bits=bits))
        config = ZeroShotConfig(steps=5, student_lr=1e-2, lr_warmup=0.0, edge_lr=0, step_lr=0)
        learner = Learner(student, x[:2], config)
        before = [s.parameter.detach().clone() for s in learner.weights]
        train(learner, student, x, model(x).detach(), 1)
        for slot, old in zip(learner.weights, before, strict=True):
            levels = slot.levels()
            gap = float((levels[:, 1:] - levels[:, :-1]).mean())
            moved = float((slot.parameter.detach() - old).abs().max())
            assert moved == pytest.approx(1e-2 * gap, rel=1e-2)
