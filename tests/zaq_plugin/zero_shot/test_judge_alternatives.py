"""Other states beside the reconstructed one: tried from the same start, weighed by the judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from finetuning import QUICK, finetune, weights
from torch import Tensor, nn

from zaq_plugin.ptq import calibrate, compensate_rounding

UNTRAINED = QUICK.with_changes(steps=0)


def wreck(student: nn.Module, batches: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.1)


def test_error_feedback_is_handed_over_where_it_is_better(
    tiny: Callable[..., nn.Module],
    make_student: Callable[..., nn.Module],
    smooth_images: Callable[..., Tensor],
) -> None:
    model, images = tiny(), smooth_images(160)
    batches = images[: QUICK.calibration_images].split(QUICK.batch_size)
    student, by_hand, reference = (make_student(model) for _ in range(3))
    calibrate(by_hand, batches)
    compensate_rounding(by_hand, batches, reference)
    result = finetune(
        student,
        UNTRAINED.with_changes(reconstruct=False),
        model,
        images=images,
        correct=wreck,
        alternatives={"feedback": partial(compensate_rounding, reference=reference)},
    )
    assert [v.label for v in result.verdicts] == ["start", "feedback"]  # type: ignore[attr-defined]
    assert result.best.label == "feedback"  # type: ignore[attr-defined]
    for name, expected in weights(by_hand).items():
        assert torch.equal(weights(student)[name], expected)


def test_a_worse_alternative_changes_nothing(
    tiny: Callable[..., nn.Module],
    make_student: Callable[..., nn.Module],
    smooth_images: Callable[..., Tensor],
) -> None:
    model, images = tiny(), smooth_images(64)
    plain, other = make_student(model), make_student(model)
    without = finetune(plain, QUICK, model, images=images)
    result = finetune(other, QUICK, model, images=images, alternatives={"wrecked": wreck})
    seen = [(v.label, v.divergence) for v in result.verdicts]  # type: ignore[attr-defined]
    wrecked = [v for v in result.verdicts if v.label == "wrecked"]  # type: ignore[attr-defined]
    assert len(wrecked) == 1
    assert not wrecked[0].accepted
    seen = [(label, value) for label, value in seen if label != "wrecked"]
    assert seen == [(v.label, v.divergence) for v in without.verdicts]  # type: ignore[attr-defined]
    for name, expected in weights(plain).items():
        assert torch.equal(weights(other)[name], expected)
