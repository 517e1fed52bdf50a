from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zaq_plugin.zero_shot.distill import (
    DistillOptions,
    distill_images,
    low_pass,
    swinging,
    total_variation,
)
from zaq_plugin.zero_shot.images import ImageStatistics
from zaq_plugin.zero_shot.statistics import BatchNormLoss

SHAPE = (3, 8, 8)


def bn_distance(model: nn.Module, images: Tensor) -> float:
    loss = BatchNormLoss(model)
    with torch.no_grad(), loss.recording():
        model(images)
    return float(loss.value())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pixels", "generator"])
def test_images_match_the_statistics_far_better_than_noise(
    tiny: Callable[..., nn.Module], method: str
) -> None:
    model = tiny()
    options = DistillOptions(steps=60, batch_size=32, method=method, generator_lr=0.01)
    images = distill_images(model, 40, SHAPE, options=options)
    assert images.shape == (40, *SHAPE)
    noise = torch.randn(32, *SHAPE, generator=torch.Generator().manual_seed(1))
    assert bn_distance(model, images[:32]) < 0.3 * bn_distance(model, noise)
    assert torch.equal(ImageStatistics().clamp(images), images)
    assert all(p.requires_grad for p in model.parameters())


def test_seed_fixes_the_images(tiny: Callable[..., nn.Module]) -> None:
    def make(seed: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        options = DistillOptions(steps=3, batch_size=8, swing=True, flip=True)
        return distill_images(tiny(), 16, SHAPE, options=options, rng=rng)

    assert torch.equal(make(1), make(1))
    assert not torch.equal(make(1), make(2))


@pytest.mark.parametrize("unit", [1 / 64, 64.0])
def test_images_are_the_same_in_any_unit(tiny: Callable[..., nn.Module], unit: float) -> None:
    """A model that divides its input by ``unit`` gets the same images, times ``unit``."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny()

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x / unit)

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def make(model: nn.Module, by: float) -> Tensor:
        # Normalised inputs are (x - mean) / std; these are by times as large.
        statistics = ImageStatistics.for_channels(3, mean, [s / by for s in std])
        options = DistillOptions(steps=5, batch_size=8)
        rng = torch.Generator().manual_seed(0)
        return distill_images(
            model.eval(), 8, SHAPE, options=options, statistics=statistics, rng=rng
        )

    # Where a pixel's gradient is all but zero, Adam's direction is a matter of rounding.
    apart = (make(Scaled(), unit) / unit - make(tiny(), 1.0)).abs()
    assert float(apart.median()) < 1e-2
    assert float(apart.mean()) < 0.03


def test_class_term_makes_the_teacher_sure(tiny: Callable[..., nn.Module]) -> None:
    model = tiny()

    def confidence(weight: float) -> float:
        options = DistillOptions(steps=40, batch_size=32, class_weight=weight)
        images = distill_images(model, 32, SHAPE, options=options)
        return float(model(images).softmax(1).amax(1).mean())

    assert confidence(1.0) > confidence(0.0) + 0.1


def test_class_term_needs_a_classifier() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)).eval()
    with pytest.raises(ValueError, match="class_weight is for classifiers"):
        distill_images(model, 4, SHAPE, options=DistillOptions(steps=1, class_weight=1.0))


def test_without_batch_norm_images_still_come() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.GELU())
    images = distill_images(model, 4, SHAPE, options=DistillOptions(steps=2, batch_size=4))
    assert images.shape == (4, *SHAPE)
    assert torch.isfinite(images).all()


def test_without_an_aim_no_step_is_taken() -> None:
    """The images are the dead leaves themselves; a prior is an aim."""
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.GELU())
    runs: list[int] = []
    model.register_forward_hook(lambda *_: runs.append(1))

    def draw(**options: float) -> Tensor:
        rng = torch.Generator().manual_seed(3)
        chosen = DistillOptions(batch_size=4, **options)  # type: ignore[arg-type]
        return distill_images(model, 4, SHAPE, options=chosen, rng=rng)

    start = draw(steps=0)
    assert torch.equal(draw(steps=5), start)
    assert not runs
    assert not torch.equal(draw(steps=5, total_variation=0.1), start)
    assert len(runs) == 5


def test_total_variation() -> None:
    x = torch.randn(2, 1, 3, 4, dtype=torch.float64).numpy()
    down = np.mean(
        [
            abs(x[b, 0, i + 1, j] - x[b, 0, i, j])
            for b in range(2)
            for i in range(2)
            for j in range(4)
        ]
    )
    across = np.mean(
        [
            abs(x[b, 0, i, j + 1] - x[b, 0, i, j])
            for b in range(2)
            for i in range(3)
            for j in range(3)
        ]
    )
    assert float(total_variation(torch.from_numpy(x))) == pytest.approx(down + across)


def test_low_pass_is_a_gaussian_blur() -> None:
    point = torch.zeros(1, 1, 15, 15, dtype=torch.float64)
    point[0, 0, 7, 7] = 1
    blurred = low_pass(point, 1.5)[0, 0].numpy()
    grid = np.arange(-4, 5)  # 3 sigma = 4.5, rounded to even
    kernel = np.exp(-(grid**2) / 4.5)
    kernel /= kernel.sum()
    expected = np.zeros((15, 15))
    expected[3:12, 3:12] = np.outer(kernel, kernel)
    np.testing.assert_allclose(blurred, expected, atol=1e-7)
    flat = torch.full((1, 3, 6, 6), 2.0)
    torch.testing.assert_close(low_pass(flat, 2.0), flat)


def test_swing_moves_strided_convolutions_only() -> None:
    torch.manual_seed(0)
    strided, plain = nn.Conv2d(1, 1, 2, stride=2), nn.Conv2d(1, 1, 2)
    x = torch.arange(64.0).reshape(1, 1, 8, 8)
    before, same = strided(x), plain(x)
    rng = torch.Generator().manual_seed(3)
    with swinging(nn.ModuleList([strided, plain]), rng):
        moved = [strided(x) for _ in range(6)]
        assert torch.equal(plain(x), same)
    assert any(not torch.equal(m, before) for m in moved)
    assert torch.equal(strided(x), before)


def test_options_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match="method must be 'pixels' or 'generator'; got 'gan'"):
        DistillOptions(method="gan")
    with pytest.raises(ValueError, match="batch_size at least 2"):
        DistillOptions(batch_size=1)
