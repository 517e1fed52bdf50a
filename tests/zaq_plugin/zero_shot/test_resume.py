from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from finetuning import MIXED, QUICK, Killed, finetune, weights
from torch import Tensor, nn

from zaq_plugin.ptq import correct_bias
from zaq_plugin.zero_shot import TrainingDiverged, ZeroShotConfig


@pytest.mark.parametrize(
    ("config", "extras"),
    [
        (QUICK, {}),
        (MIXED, {}),
        (QUICK, {"correct": correct_bias}),
        (QUICK, {"alternatives": {"corrected": correct_bias}}),
    ],
    ids=["default", "mixed", "corrected", "alternatives"],
)
@pytest.mark.parametrize("killed_at", [3, pytest.param(7, marks=pytest.mark.slow)])
def test_resume_is_exact_to_the_bit(
    config: ZeroShotConfig,
    extras: dict[str, object],
    killed_at: int,
    tiny: Callable[..., nn.Module],
    make_student: Callable[..., nn.Module],
    tmp_path: Path,
) -> None:
    config = config.with_changes(checkpoint_every=2)
    model = tiny()
    whole = make_student(model)
    finetune(whole, config, model, **extras)

    def die(step: int) -> None:
        if step == killed_at:
            raise Killed

    student = make_student(model)
    with pytest.raises(Killed):
        finetune(student, config, model, **extras, checkpoint_dir=tmp_path, on_step=die)
    resumed = make_student(model)
    steps: list[int] = []
    finetune(resumed, config, model, **extras, checkpoint_dir=tmp_path, on_step=steps.append)
    assert steps[0] == killed_at - killed_at % 2 + (1 if killed_at % 2 else 0)
    assert all(torch.equal(a, b) for a, b in zip(
        weights(whole).values(), weights(resumed).values(), strict=True
    ))  # fmt: skip


def test_a_checkpoint_of_other_settings_is_refused(
    tiny: Callable[..., nn.Module], make_student: Callable[..., nn.Module], tmp_path: Path
) -> None:
    model = tiny()
    finetune(make_student(model), QUICK.with_changes(steps=2), model, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match=r"other settings \(steps: 2, now 3\)"):
        finetune(make_student(model), QUICK.with_changes(steps=3), model, checkpoint_dir=tmp_path)


def test_nan_stops_with_the_best_state(
    tiny: Callable[..., nn.Module],
    make_student: Callable[..., nn.Module],
    smooth_images: Callable[..., Tensor],
    tmp_path: Path,
) -> None:
    model = tiny()
    student = make_student(model)

    def poison(step: int) -> None:
        if step == 5:
            with torch.no_grad():
                student.head.bias.fill_(float("nan"))  # type: ignore[union-attr, operator]

    with pytest.raises(TrainingDiverged) as caught:
        finetune(
            student,
            QUICK.with_changes(checkpoint_every=4),
            model,
            checkpoint_dir=tmp_path,
            on_step=poison,
        )
    text = str(caught.value)
    assert "step 6: the loss is nan" in text
    assert "KL nan" in text
    assert "smaller student_lr" in text
    assert str(tmp_path) in text
    assert (tmp_path / "checkpoint.pt").exists()
    assert torch.isfinite(student(smooth_images(4))).all()


def test_a_gradient_that_is_not_finite_stops_it_too(
    tiny: Callable[..., nn.Module],
    make_student: Callable[..., nn.Module],
    smooth_images: Callable[..., Tensor],
) -> None:
    """Where the loss is finite, weights would be NaN a step later, and quantizers refuse them."""
    model = tiny()
    student = make_student(model)

    def poison(step: int) -> None:
        if step == 2:
            student.head.bias.register_hook(  # type: ignore[union-attr, operator]
                lambda grad: torch.full_like(grad, math.nan)
            )

    with pytest.raises(TrainingDiverged, match="step 3: the gradient's norm is nan"):
        finetune(student, QUICK, model, on_step=poison)
    assert torch.isfinite(student(smooth_images(4))).all()
