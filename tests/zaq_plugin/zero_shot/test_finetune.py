from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from finetuning import MIXED, QUICK, SHAPE, finetune, weights
from torch import Tensor, nn

from zaq_plugin.ptq import calibrate, correct_bias, quantized_tensors
from zaq_plugin.pwlq import PWLQSpec, UniformSpec
from zaq_plugin.student import reached_layers, twin
from zaq_plugin.zero_shot import (
    DistillOptions,
    ZeroShotConfig,
    distill_images,
    reconstruct,
    zero_shot_finetune,
)
from zaq_plugin.zero_shot import finetune as story


@pytest.mark.parametrize(
    "config",
    [QUICK, MIXED, ZeroShotConfig.preset("paper", steps=6, batch_size=8, latent_dim=8,
                                         generator_width=4, validate_every=3,
                                         validation_images=32, calibration_images=32)],
    ids=["default", "mixed", "paper"],
)  # fmt: skip
def test_kinds_of_runs(
    config: ZeroShotConfig,
    tiny: Callable[..., nn.Module],
    make_student: Callable[..., nn.Module],
    smooth_images: Callable[..., Tensor],
) -> None:
    model = tiny()
    student = make_student(model, UniformSpec(bits=2, symmetry="asymmetric"), ready=False)
    result = finetune(student, config, model)
    assert result.best in result.verdicts  # type: ignore[attr-defined]
    assert result.best.divergence == min(  # type: ignore[attr-defined]
        v.divergence
        for v in result.verdicts
        if v.accepted  # type: ignore[attr-defined]
    )
    assert torch.isfinite(student(smooth_images(4))).all()
    assert len(quantized_tensors(student)) == 7
    assert result.examples.shape[1:] == SHAPE  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec", [UniformSpec(bits=2, symmetry="asymmetric"), PWLQSpec(bits=2)], ids=lambda s: s.kind
)
def test_it_recovers_the_teacher(
    spec: UniformSpec | PWLQSpec,
    tiny: Callable[..., nn.Module],
    make_student: Callable[..., nn.Module],
) -> None:
    """Judged on images that were distilled from another seed."""
    model = tiny()
    rng = torch.Generator().manual_seed(55)
    x = distill_images(model, 128, SHAPE, options=DistillOptions(steps=10), rng=rng)
    student = make_student(model, spec, 3, ready=False)
    calibrate(student, [x])
    before = float((student(x) - model(x)).square().mean().detach())
    config = QUICK.with_changes(
        steps=60, reconstruct_iterations=100, student_lr=5e-3, validation_images=128
    )
    result = finetune(student, config, model)
    assert result.improved  # type: ignore[attr-defined]
    assert float((student(x) - model(x)).square().mean().detach()) < 0.8 * before


def test_biases_are_corrected_between_ranges_and_the_first_judgement(
    tiny: Callable[..., nn.Module],
    make_student: Callable[..., nn.Module],
    smooth_images: Callable[..., Tensor],
) -> None:
    model, images = tiny(), smooth_images(48)
    pool, held_out = images[:-16], images[-16:]
    by_hand = make_student(model)
    calibrate(by_hand, pool.split(QUICK.batch_size))
    correct_bias(by_hand, pool.split(QUICK.batch_size))
    with torch.no_grad():
        p, q = model(held_out).log_softmax(1), by_hand.eval()(held_out).log_softmax(1)
    expected = float((p.exp() * (p - q)).sum(1).mean())
    seen: list[int] = []

    def correct(student: nn.Module, batches: Sequence[Tensor]) -> None:
        seen.extend(len(batch) for batch in batches)
        correct_bias(student, batches)

    student = make_student(model)
    config = QUICK.with_changes(steps=0, reconstruct=False, validation_copies=1)
    result = finetune(student, config, model, images=images, correct=correct)
    assert seen == [8] * 4
    assert result.start.divergence == pytest.approx(expected, rel=1e-3)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("patience", "steps"), [(0, 12), (1, 4), (2, 8)])
def test_training_ends_where_it_finds_nothing_better(
    tiny: Callable[..., nn.Module],
    make_student: Callable[..., nn.Module],
    smooth_images: Callable[..., Tensor],
    patience: int,
    steps: int,
) -> None:
    """At a rate of zero nothing changes, and nothing is ever better than the start."""
    model = tiny()
    still = {"student_lr": 0.0, "step_lr": 0.0, "edge_lr": 0.0, "reconstruct": False}
    config = QUICK.with_changes(patience=patience, **still)
    taken: list[int] = []
    result = finetune(
        make_student(model), config, model, images=smooth_images(48), on_step=taken.append
    )
    assert taken == list(range(1, steps + 1))
    assert result.best.label == "start"  # type: ignore[attr-defined]


def test_reconstruction_starts_from_the_float_biases(
    tiny: Callable[..., nn.Module],
    make_student: Callable[..., nn.Module],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny()
    student = make_student(model)
    names = [name for name, _ in student.named_parameters() if name.endswith("bias")]
    seen: dict[str, list[Tensor]] = {}

    def note(when: str, student: nn.Module) -> None:
        seen[when] = [student.get_parameter(name).detach().clone() for name in names]

    def correct(student: nn.Module, batches: Sequence[Tensor]) -> None:
        correct_bias(student, batches)
        note("corrected", student)

    def watched(student: nn.Module, *args: Any, **kwargs: Any) -> Any:
        note("reconstruction", student)
        return reconstruct(student, *args, **kwargs)

    note("float", student)
    monkeypatch.setattr(story, "reconstruct", watched)
    finetune(student, QUICK.with_changes(steps=0), model, correct=correct)
    for old, corrected, now in zip(*seen.values(), strict=True):
        assert not torch.equal(old, corrected)
        torch.testing.assert_close(now, old)


def test_the_students_mode_and_hooks_are_left_as_they_were(
    tiny: Callable[..., nn.Module], make_student: Callable[..., nn.Module]
) -> None:
    model = tiny()
    student = make_student(model)
    student.train()
    hooks = sum(len(m._forward_hooks) for m in student.modules())
    finetune(student, QUICK.with_changes(steps=2), model)
    assert all(m.training for m in student.modules())
    assert sum(len(m._forward_hooks) for m in student.modules()) == hooks
    slots = reached_layers(student, torch.zeros(2, *SHAPE))
    assert all(type(s.quantizer).__name__ == "PWLQPerChannelFakeQuantize" for s in slots)


def test_the_float_model_is_not_touched(
    tiny: Callable[..., nn.Module], make_student: Callable[..., nn.Module]
) -> None:
    model = tiny()
    before = weights(model)
    finetune(make_student(model), MIXED.with_changes(steps=3), model)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_given_images_take_the_place_of_distilled_ones(
    tiny: Callable[..., nn.Module],
    make_student: Callable[..., nn.Module],
    smooth_images: Callable[..., Tensor],
) -> None:
    model = tiny()
    x = smooth_images(60)
    result = finetune(make_student(model), QUICK, model, images=x)
    assert torch.equal(result.examples, x[:40])  # type: ignore[attr-defined]


def test_a_model_without_batch_norm_works(
    make_student: Callable[..., nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
            self.conv2 = nn.Conv2d(8, 8, 3, stride=2)
            self.head = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.gelu(self.conv2(nn.functional.gelu(self.conv1(x))))
            return 5 * self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    model = Plain().eval()
    student = make_student(model, UniformSpec(bits=2, symmetry="asymmetric"))
    with caplog.at_level(logging.INFO):
        result = zero_shot_finetune(student, QUICK, image_shape=SHAPE, progress=False)
    assert "the BatchNorm-statistics terms fall away" in caplog.text
    assert result.best is not None
    assert result.best.divergence <= result.start.divergence


def test_twin_of_a_finetuned_student_still_answers(
    tiny: Callable[..., nn.Module], make_student: Callable[..., nn.Module]
) -> None:
    model = tiny()
    student = make_student(model)
    finetune(student, QUICK.with_changes(steps=3), model)
    assert torch.isfinite(twin(student)(torch.zeros(2, *SHAPE))).all()
