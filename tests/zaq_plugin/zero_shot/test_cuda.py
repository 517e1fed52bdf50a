"""Zero-shot fine-tuning on a GPU: training, resuming, and the loader in a loop of one's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from finetuning import MIXED, QUICK, SHAPE, Killed, finetune, weights
from torch import nn

from zaq_plugin.ptq import compensate_rounding, correct_bias
from zaq_plugin.pwlq import PWLQSpec
from zaq_plugin.zero_shot import ZeroShotConfig, ZeroShotLoader

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
Make = Callable[..., nn.Module]


@pytest.mark.parametrize("config", [QUICK, MIXED], ids=["default", "mixed"])
def test_training_and_resuming(
    config: ZeroShotConfig,
    tiny: Make,
    make_student: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    config = config.with_changes(checkpoint_every=2)
    model = tiny()
    student, whole, resumed = (make_student(model, PWLQSpec(bits=3)).cuda() for _ in range(3))
    model = model.cuda()
    result = finetune(whole, config, model, correct=correct_bias)
    assert {v.device.type for v in whole.state_dict().values()} == {"cuda"}
    assert result.verdicts  # type: ignore[attr-defined]

    def die(step: int) -> None:
        if step == 5:
            raise Killed

    extras = {"correct": correct_bias, "checkpoint_dir": tmp_path}
    with pytest.raises(Killed):
        finetune(student, config, model, on_step=die, **extras)
    finetune(resumed, config, model, **extras)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], value, rtol=1e-4, atol=1e-4)


def test_an_alternative_is_weighed_there(tiny: Make, make_student: Make) -> None:
    model = tiny()
    student, reference = make_student(model).cuda(), make_student(model).cuda()
    result = finetune(
        student,
        QUICK.with_changes(steps=0),
        model.cuda(),
        alternatives={"feedback": partial(compensate_rounding, reference=reference)},
    )
    assert "feedback" in [v.label for v in result.verdicts]  # type: ignore[attr-defined]
    assert {v.device.type for v in student.state_dict().values()} == {"cuda"}


def test_the_loader_gives_batches_there(tiny: Make, make_student: Make) -> None:
    student = make_student(tiny()).cuda()
    loader = ZeroShotLoader(student, SHAPE, MIXED)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
    for images, targets in loader:
        assert images.is_cuda
        assert targets.is_cuda
        loss = loader.loss(student(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.isfinite(loss)
