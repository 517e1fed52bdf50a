"""`lower`: what runs on int8 kernels computes what the converted model does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import perturb
from pt2e_routes import finish, prepare, sqnr
from torch import Tensor, nn

from zaq_pt2e import audit, lower


@torch.no_grad()
def test_a_channels_last_model_is_quantized_like_any_other(
    images: Tensor, export: Callable[..., Any]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    expected = finish(prepare(perturb(model), images, export, False), images)(images)
    model = model.to(memory_format=torch.channels_last)
    converted = finish(prepare(model, images, export, False), images)
    assert sqnr(expected, converted(images)) > 60
    assert sqnr(expected, lower(converted, (images,))(images)) > 60


class Viewed(nn.Module):
    """A view that ends the image, which is channels-last behind a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(100, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(x)).view(-1, 8, 100)).sum(1)


class Shuffled(nn.Module):
    """Channels shuffled by views between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        size = y.shape[-1]
        y = y.view(-1, 2, 4, size, size).transpose(1, 2).reshape(-1, 8, size, size)
        return self.b(y)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "flatten": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(800, 4)),
    "relu": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(800, 4), nn.ReLU(), nn.Linear(4, 2)
    ),
    "view": Viewed,
    "shuffle": Shuffled,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_views_behind_convolutions_run_lowered(
    name: str, images: Tensor, export: Callable[..., Any]
) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    converted = finish(prepare(model, images, export, False), images)
    with torch.no_grad():
        lowered = lower(converted, (images,))
        assert sqnr(converted(images), lowered(images)) > 60
    assert sqnr(model(images), lowered(images)) > 22
    first, *_ = audit(converted, lowered=lowered)
    assert first.kernel.startswith("onednn.qconv")
