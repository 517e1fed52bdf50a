"""Every strategy on a GPU: everything stays there, and comes out as on a CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zaq_plugin.strategies import STRATEGIES, Request, apply

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def distance(one: Tensor, other: Tensor) -> float:
    return float((one.cpu() - other.cpu()).norm() / other.cpu().norm())


@pytest.mark.parametrize("levels", ["uniform", "pwlq"])
@pytest.mark.parametrize("name", [*STRATEGIES, "pwlq+gptq", "rq+bias-correction"])
def test_every_strategy_stays_on_the_device(
    name: str,
    levels: str,
    model: nn.Module,
    request_of: Callable[..., Request],
    real: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    strategy = STRATEGIES.get(name)
    images: dict[str, Any] = {"synthetic": real}
    if strategy is not None and strategy.data == "real":
        images = {"images": real}
    asked = request_of(levels=levels, **images)
    here = apply(name, model, asked)
    on_device = replace(asked, example_inputs=(asked.example_inputs[0].cuda(),))
    there = apply(name, copy.deepcopy(model).cuda(), on_device)
    places = {k: v.device.type for k, v in there.model.state_dict().items()}
    assert set(places.values()) == {"cuda"}, [k for k, v in places.items() if v != "cuda"]
    assert [r.stored_bits for r in there.layers] == [r.stored_bits for r in here.layers]
    x = torch.randn(8, 3, 16, 16)
    float_answer, answer = model(x), there.model(x.cuda())
    if strategy is not None and strategy.trains:  # other sums lead to other roundings
        allowed = 1.3 * distance(here.model(x), float_answer) + 0.02
        assert distance(answer, float_answer) < allowed
    else:
        assert distance(answer, here.model(x)) < 0.03


@pytest.mark.parametrize("name", ["zeroq", "deepinversion", "gdfq", "zaq"])
def test_images_are_made_on_the_device(
    name: str, model: nn.Module, request_of: Callable[..., Request]
) -> None:
    asked = request_of(example_inputs=(torch.zeros(2, 3, 16, 16, device="cuda"),))
    applied = apply(name, model.cuda(), asked)
    assert applied.images is not None
    assert applied.images.is_cuda
    x = torch.randn(8, 3, 16, 16, device="cuda")
    assert distance(applied.model(x), model(x)) < 0.5
