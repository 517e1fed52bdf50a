from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from zaq_plugin.student import twin
from zaq_plugin.zero_shot.adversary import Adversary, batch_similarity
from zaq_plugin.zero_shot.config import ZeroShotConfig
from zaq_plugin.zero_shot.discrepancy import all_outputs
from zaq_plugin.zero_shot.images import ImageFormat

CONFIG = ZeroShotConfig(
    batch_size=16,
    images="generator",
    latent_dim=8,
    generator_width=4,
    warmup_steps=5,
    generator_lr=1e-2,
    alpha=0.0,
    bn_weight=0.0,
    beta=0.0,
)


def adversary(student: nn.Module, memory: nn.Module, config: ZeroShotConfig) -> Adversary:
    return Adversary(
        config,
        ImageFormat((3, 8, 8)),
        twin(student),
        memory,
        all_outputs,
        torch.Generator().manual_seed(0),
        torch.device("cpu"),
    )


def test_generator_widens_the_gap(
    tiny: Callable[..., nn.Module], make_student: Callable[..., nn.Module]
) -> None:
    model = tiny()
    student = make_student(model)
    enemy = adversary(student, model, CONFIG)
    gaps = [enemy.step(student, None, None, None)["D_o"] for _ in range(40)]
    assert sum(gaps[-5:]) > 1.2 * sum(gaps[:5])


def test_margin_bounds_what_it_is_after(
    tiny: Callable[..., nn.Module], make_student: Callable[..., nn.Module]
) -> None:
    model = tiny()
    student = make_student(model)
    enemy = adversary(student, model, CONFIG.with_changes(margin=1e-6))
    before = [p.detach().clone() for p in enemy.generator.parameters()]
    enemy.step(student, None, None, None)
    after = list(enemy.generator.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_warm_up_approaches_the_statistics(
    tiny: Callable[..., nn.Module], make_student: Callable[..., nn.Module]
) -> None:
    model = tiny()
    enemy = adversary(make_student(model), model, CONFIG.with_changes(bn_weight=1.0))
    losses: list[float] = []
    enemy.warm_up(40, lambda step, loss: losses.append(loss))
    assert losses[-1] < 0.7 * losses[0]
    assert enemy.reference_diversity > 0


def test_collapsed_generator_is_restarted_and_it_is_said(
    tiny: Callable[..., nn.Module],
    make_student: Callable[..., nn.Module],
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tiny()
    enemy = adversary(make_student(model), model, CONFIG)
    enemy.warm_up(2)
    assert not enemy.restart_if_collapsed(enemy.sample(), 3)
    old = enemy.generator
    with caplog.at_level(logging.WARNING):
        assert enemy.restart_if_collapsed(torch.zeros(16, 3, 8, 8), 7)
    assert enemy.generator is not old
    assert enemy.restarts == [7]
    assert "step 7: the generator has collapsed" in caplog.text
    first, fresh = (next(iter(g.parameters())) for g in (old, enemy.generator))
    assert not torch.equal(first, fresh)


def test_latents_are_refined_with_the_generator(
    tiny: Callable[..., nn.Module], make_student: Callable[..., nn.Module]
) -> None:
    model = tiny()
    student = make_student(model)
    enemy = adversary(student, model, CONFIG.with_changes(latent_lr=0.1))
    assert enemy.latents is not None
    before = enemy.latents.detach().clone()
    enemy.step(student, None, None, None)
    assert not torch.equal(before[:8], enemy.latents[:8])


def test_batch_similarity() -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    rows = [row / row.norm() for row in x]
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    expected = sum(float(rows[i] @ rows[j]) ** 2 for i, j in pairs) / len(pairs)
    assert float(batch_similarity(x)) == pytest.approx(expected)


def test_models_without_batch_norm_have_a_diversity_term(
    make_student: Callable[..., nn.Module],
) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3, padding=1)
            self.head = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(nn.functional.gelu(self.conv(x)).mean((2, 3)))

    torch.manual_seed(0)
    model = Plain().eval()
    student = make_student(model)
    enemy = adversary(student, model, CONFIG.with_changes(diversity_weight=1.0, gamma=0.0))
    values = [enemy.step(student, None, None, None)["similarity"] for _ in range(30)]
    assert values[-1] < values[0]
