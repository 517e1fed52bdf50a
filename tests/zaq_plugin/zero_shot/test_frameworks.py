"""The loader inside training frameworks: their loops, unmodified."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zaq_plugin.zero_shot import ZeroShotConfig, ZeroShotLoader

CONFIG = ZeroShotConfig(
    steps=6,
    batch_size=8,
    images="mixed",
    distilled_images=16,
    distill_steps=2,
    latent_dim=8,
    generator_width=4,
    warmup_steps=2,
    student_steps=2,
    student_lr=1e-2,
)


@pytest.mark.filterwarnings("ignore")
def test_lightning(
    tiny: Callable[..., nn.Module], make_student: Callable[..., nn.Module], tmp_path: Path
) -> None:
    lightning = pytest.importorskip("lightning", reason="Lightning is not installed")
    student = make_student(tiny())
    loader = ZeroShotLoader(student, (3, 8, 8), CONFIG)
    losses: list[float] = []

    class Module(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.student = student

        def training_step(self, batch: Any, index: int) -> Tensor:
            images, targets = batch
            loss = loader.loss(self.student(images), targets)
            losses.append(float(loss.detach()))
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.student.parameters(), lr=1e-2)

    before = copy.deepcopy(student.state_dict())
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Module(), train_dataloaders=loader)
    assert len(losses) == 6
    after = student.state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before)


@pytest.mark.filterwarnings("ignore")
def test_accelerate(tiny: Callable[..., nn.Module], make_student: Callable[..., nn.Module]) -> None:
    accelerate = pytest.importorskip("accelerate", reason="Accelerate is not installed")
    student = make_student(tiny())
    accelerator = accelerate.Accelerator(cpu=True)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-2)
    student, optimizer = accelerator.prepare(student, optimizer)
    loader = ZeroShotLoader(student, (3, 8, 8), CONFIG, device=accelerator.device)
    steps = 0
    for images, targets in loader:
        with accelerator.accumulate(student):
            loss = loader.loss(student(images), targets)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        steps += 1
    assert steps == 6
    assert bool(torch.isfinite(loss.detach()))
